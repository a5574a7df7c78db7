"""Releases are held, published or withdrawn, and sites' answers are kept by their key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """What was released so far was published when it was signed."""
    op.create_table(
        "release_event",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
    )
    op.create_index("ix_release_event_release", "release_event", ["release"])
    op.create_table(
        "release_answer",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("release", "key_id", "kind"),
    )
    op.execute(
        "INSERT INTO release_event (release, state, code, at) "
        "SELECT release, 'published', '', created_at FROM release ORDER BY created_at"
    )
    op.execute(
        "INSERT INTO release_answer (release, key_id, kind, site, code, at) "
        "SELECT r.release, s.ledger_key_id, 'release', s.name, p.release_code, r.created_at "
        "FROM release r JOIN participant p ON p.job = r.job "
        "JOIN site s ON s.name = p.site AND s.revoked_at IS NULL "
        "WHERE p.release_code IS NOT NULL"
    )
