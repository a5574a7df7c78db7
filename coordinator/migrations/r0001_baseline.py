"""The coordinator's tables of the first version."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables; those of a database from before there were revisions stay."""
    op.create_table(
        "invite",
        sa.Column("token_sha256", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=False),
        sa.Column("used_by_key_id", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("token_sha256"),
        if_not_exists=True,
    )
    op.create_table(
        "job",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=True),
        sa.Column("request_json", sa.String(), nullable=False),
        sa.Column("plan_json", sa.LargeBinary(), nullable=False),
        sa.Column("plan_statement", sa.LargeBinary(), nullable=False),
        sa.Column("basis", sa.LargeBinary(), nullable=False),
        sa.Column("rounds_done", sa.Integer(), nullable=False),
        sa.Column("weights", sa.LargeBinary(), nullable=False),
        sa.Column("optimiser", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("deadline_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
        sa.UniqueConstraint("job"),
        if_not_exists=True,
    )
    op.create_table(
        "journal",
        sa.Column("sequence", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("fields_json", sa.String(), nullable=False),
        sa.Column("entry", sa.Integer(), nullable=True),
        sa.PrimaryKeyConstraint("sequence"),
        if_not_exists=True,
    )
    op.create_table(
        "participant",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("plan_code", sa.String(), nullable=True),
        sa.Column("release_code", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("job", "site"),
        if_not_exists=True,
    )
    op.create_table(
        "release",
        sa.Column("release", sa.String(), nullable=False),
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("adapter", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("release"),
        sa.UniqueConstraint("job"),
        if_not_exists=True,
    )
    op.create_table(
        "round",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("sites_json", sa.String(), nullable=False),
        sa.Column("opened_at", sa.Double(), nullable=False),
        sa.Column("deadline_at", sa.Double(), nullable=False),
        sa.Column("closed_at", sa.Double(), nullable=True),
        sa.Column("order_statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job", "number"),
        if_not_exists=True,
    )
    op.create_table(
        "secure_answer",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("job", "number", "step", "site"),
        if_not_exists=True,
    )
    op.create_table(
        "secure_round",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("stage", sa.String(), nullable=False),
        sa.PrimaryKeyConstraint("job", "number"),
        if_not_exists=True,
    )
    op.create_table(
        "site",
        sa.Column("key_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("public_pem", sa.String(), nullable=False),
        sa.Column("node_public", sa.String(), nullable=False),
        sa.Column("enrolled_at", sa.Double(), nullable=False),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("quarantine_code", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("key_id"),
        sa.UniqueConstraint("node_public"),
        if_not_exists=True,
    )
    op.create_index(
        "one_active_site_per_name",
        "site",
        ["name"],
        unique=True,
        sqlite_where=sa.text("revoked_at IS NULL"),
        postgresql_where=sa.text("revoked_at IS NULL"),
        if_not_exists=True,
    )

    op.create_table(
        "update",
        sa.Column("job", sa.String(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("site", sa.String(), nullable=False),
        sa.Column("code", sa.String(), nullable=False),
        sa.Column("payload_sha256", sa.String(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("received_at", sa.Double(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("job", "number", "site"),
        if_not_exists=True,
    )
    op.create_index(
        "ix_update_payload_sha256", "update", ["payload_sha256"], unique=False, if_not_exists=True
    )
