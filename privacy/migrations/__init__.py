"""Migrations of the tables of budget and ledger, one script a change."""
