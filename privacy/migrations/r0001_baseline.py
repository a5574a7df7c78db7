"""The tables of the first version: budget and ledger."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; those of a database from before there were revisions stay."""
    op.create_table(
        "budget_reservation",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("round", sa.Integer(), nullable=False),
        sa.Column("purpose", sa.String(), nullable=False),
        sa.Column("plan_sha256", sa.String(), nullable=False),
        sa.Column("base_sha256", sa.String(), nullable=False),
        sa.Column("unit", sa.String(), nullable=False),
        sa.Column("adjacency", sa.String(), nullable=False),
        sa.Column("sampling_rate", sa.Double(), nullable=False),
        sa.Column("noise_multiplier", sa.Double(), nullable=False),
        sa.Column("clipping_norm", sa.Double(), nullable=False),
        sa.Column("delta", sa.Double(), nullable=False),
        sa.Column("year", sa.Integer(), nullable=False),
        sa.Column("committed", sa.Boolean(), nullable=False),
        sa.Column("recorded", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("site", "job", "round"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_log",
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("public_pem", sa.String(), nullable=False),
        sa.Column("head", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("log_id"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_entry",
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["ledger_log.log_id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "position"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_peer_head",
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("root", sa.String(), nullable=False),
        sa.Column("open", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["ledger_log.log_id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "peer", "size"),
        if_not_exists=True,
    )
    op.create_table(
        "ledger_shown_head",
        sa.Column("log_id", sa.String(), nullable=False),
        sa.Column("peer", sa.String(), nullable=False),
        sa.Column("size", sa.Integer(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["log_id"],
            ["ledger_log.log_id"],
        ),
        sa.PrimaryKeyConstraint("log_id", "peer", "size"),
        if_not_exists=True,
    )
