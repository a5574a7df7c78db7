"""Migrations of a site's own tables, one script a change."""
