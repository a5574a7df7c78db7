"""Alembic's environment, one for the migrations of every room."""
