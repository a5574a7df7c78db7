"""Sites wait for approval, and may replace their signing key."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Sites that took part go on; an invite that is still out needs approval."""
    op.create_table(
        "retired_key",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("public_pem", sa.String(), nullable=False),
        sa.Column("retired_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("key_id"),
    )
    op.create_index("ix_retired_key_site", "retired_key", ["site"])
    no = sa.false()
    op.add_column("invite", sa.Column("approve", sa.Boolean(), nullable=False, server_default=no))
    op.add_column("site", sa.Column("approved_at", sa.Double(), nullable=True))
    ledger_key = sa.Column("ledger_key_id", sa.String(), nullable=False, server_default="")
    op.add_column("site", ledger_key)
    op.execute("UPDATE site SET approved_at = enrolled_at, ledger_key_id = key_id")
