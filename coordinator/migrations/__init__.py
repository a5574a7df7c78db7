"""Migrations of the coordinator's tables, one script a change."""
