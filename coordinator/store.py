"""The room's one SQLAlchemy schema: sites, invites, jobs, rounds, updates, releases, lease.

Engines and transactions come from `privacy.store`; every state transition of the coordinator is
one `writing` transaction over these tables. A change of them needs a
migration (`coordinator/migrations`; `python -m docs.new_migration` writes it). Times are seconds
since the epoch (UTC).
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, Index, LargeBinary, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from privacy.schema import PRIVACY, Schema, Upgrade


class Base(DeclarativeBase):
    """Declarative base of every table of this room."""


class SiteRow(Base):
    """An enrolled site. A site enrolled again after revocation is a new row with new keys.

    `approved_at` is None until an operator approves the site, or its invite did.
    """

    __tablename__ = "site"
    __table_args__ = (
        Index(
            "one_active_site_per_name",
            "name",
            unique=True,
            sqlite_where=text("revoked_at IS NULL"),
            postgresql_where=text("revoked_at IS NULL"),
        ),
    )

    key_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    public_pem: Mapped[str]
    node_public: Mapped[str] = mapped_column(unique=True)
    ledger_key_id: Mapped[str]  # key that the site enrolled with, and began its ledger with
    enrolled_at: Mapped[float]
    approved_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    quarantine_code: Mapped[str | None]


class InviteRow(Base):
    """A one-time invite; only the token's hash is kept."""

    __tablename__ = "invite"

    token_sha256: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str]
    expires_at: Mapped[float]
    approve: Mapped[bool]  # whoever enrols with it needs no approval
    used_by_key_id: Mapped[str | None]


class RetiredKeyRow(Base):
    """A signing key that a site has replaced; it signs nothing any more."""

    __tablename__ = "retired_key"

    key_id: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(index=True)
    public_pem: Mapped[str]
    retired_at: Mapped[float]


class JobRow(Base):
    """A job and its checkpoint: what a restarted coordinator needs to go on."""

    __tablename__ = "job"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    job: Mapped[str] = mapped_column(unique=True)
    state: Mapped[str]
    reason: Mapped[str | None]
    request_json: Mapped[str]
    plan_json: Mapped[bytes] = mapped_column(LargeBinary)
    plan_statement: Mapped[bytes] = mapped_column(LargeBinary)
    basis: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    rounds_done: Mapped[int]
    weights: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    optimiser: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    created_at: Mapped[float]
    deadline_at: Mapped[float]  # of preparing and of releasing
    finished_at: Mapped[float | None]


class ParticipantRow(Base):
    """What one site answered to a job's plan and to its release."""

    __tablename__ = "participant"

    job: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    plan_code: Mapped[str | None]
    release_code: Mapped[str | None]


class RoundRow(Base):
    """A round; its sites' answers are its UpdateRows."""

    __tablename__ = "round"

    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    status: Mapped[str]
    attempt: Mapped[int]
    sites_json: Mapped[str]
    opened_at: Mapped[float]
    deadline_at: Mapped[float]
    closed_at: Mapped[float | None]
    order_statement: Mapped[bytes] = mapped_column(LargeBinary)


class UpdateRow(Base):
    """One site's answer to one round: an admitted update, or a refusal's code.

    The payload is dropped in the transaction that checkpoints the round's aggregate.
    """

    __tablename__ = "update"

    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str]
    payload_sha256: Mapped[str] = mapped_column(index=True)
    size_bytes: Mapped[int]
    received_at: Mapped[float]
    payload: Mapped[bytes | None] = mapped_column(LargeBinary, deferred=True)


class SecureRoundRow(Base):
    """Where a round of secure aggregation stands; no row while it waits for keys."""

    __tablename__ = "secure_round"

    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    stage: Mapped[str]


class SecureAnswerRow(Base):
    """One site's answer to one step of secure aggregation: what it signed, or a refusal's code.

    What is here never opens one site's update: see `privacy.secure_aggregation`. Only confirmations
    outlast their round.
    """

    __tablename__ = "secure_answer"

    job: Mapped[str] = mapped_column(primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    step: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str] = mapped_column(primary_key=True)
    code: Mapped[str]
    statement: Mapped[bytes] = mapped_column(LargeBinary)


class ReleaseRow(Base):
    """A signed release. The files in releases/ are a copy of these bytes."""

    __tablename__ = "release"

    release: Mapped[str] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(unique=True)
    statement: Mapped[bytes] = mapped_column(LargeBinary)
    adapter: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)
    created_at: Mapped[float]


class ReleaseEventRow(Base):
    """One event in a release's life: its state is that of the latest. Rows are never changed."""

    __tablename__ = "release_event"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    release: Mapped[str] = mapped_column(index=True)
    state: Mapped[str]
    code: Mapped[str]
    at: Mapped[float]


class ReleaseAnswerRow(Base):
    """What one site, known by its ledger's key, answered to a release or to its withdrawal."""

    __tablename__ = "release_answer"

    release: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    site: Mapped[str]
    code: Mapped[str]
    at: Mapped[float]


class JournalRow(Base):
    """An event that a committed transition owes to the ledger; `entry` is its index there."""

    __tablename__ = "journal"

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    kind: Mapped[str]
    fields_json: Mapped[str]
    entry: Mapped[int | None]


class LeaseRow(Base):
    """Which coordinator writes to this database, and until when; one row."""

    __tablename__ = "lease"

    id: Mapped[int] = mapped_column(primary_key=True)
    token: Mapped[int]  # grows with each holder
    holder: Mapped[str]
    expires_at: Mapped[float]


COORDINATOR = Schema("coordinator", Base.metadata, Path(__file__).parent / "migrations")


def create_schema(engine: Engine) -> None:
    """Make the tables that are missing in a new database. Raises StoreError for another version."""
    PRIVACY.open(engine)
    COORDINATOR.open(engine)


def upgrade_schema(engine: Engine) -> list[Upgrade]:
    """Bring every table of a coordinator to this program's version. Raises StoreError."""
    return [PRIVACY.upgrade(engine), COORDINATOR.upgrade(engine)]
