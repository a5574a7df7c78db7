"""The room's one SQLAlchemy schema: a site's own tables, beside those of budget and ledger.

All share `auricle.db`, so that a crash leaves one consistent state. A change of them needs a
migration (`client_node/migrations`; `python -m docs.new_migration` writes it).
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import JSON, Engine, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from privacy.schema import PRIVACY, Schema, Upgrade


class Base(DeclarativeBase):
    """Declarative base of a site's own tables."""


class SubjectRow(Base):
    """One person: the privacy unit. Consent, once withdrawn, is not given back by an import.

    `joined_after` is the number of the last round reserved before the person arrived
    (`privacy.budget.Budget.position`): through rounds up to it nothing of theirs was spent.
    """

    __tablename__ = "subject"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    consent: Mapped[bool]
    joined_after: Mapped[int]


class RecordingRow(Base):
    """One recording, named by the hash of its file so that the same audio never counts twice."""

    __tablename__ = "recording"

    id: Mapped[int] = mapped_column(primary_key=True)
    audio_sha256: Mapped[str] = mapped_column(unique=True)
    path: Mapped[str]
    text: Mapped[str]
    subject_id: Mapped[int] = mapped_column(ForeignKey("subject.id"), index=True)
    split: Mapped[str]
    language: Mapped[str | None]
    duration_s: Mapped[float]
    terms: Mapped[list[str]] = mapped_column(JSON)


class PlanRow(Base):
    """A plan this site has accepted, with the frozen basis that came with it."""

    __tablename__ = "accepted_plan"

    job: Mapped[str] = mapped_column(primary_key=True)
    plan_sha256: Mapped[str]
    plan: Mapped[bytes]
    basis: Mapped[bytes]


class OutboxRow(Base):
    """One sealed round of one job: the exact bytes that leave, however often they are asked for."""

    __tablename__ = "outbox"

    job: Mapped[str] = mapped_column(primary_key=True)
    round: Mapped[int] = mapped_column(primary_key=True)
    order_sha256: Mapped[str]
    statement: Mapped[bytes]
    payload: Mapped[bytes]
    settled: Mapped[bool]  # budget and ledger know of it


class PeerRow(Base):
    """A site that was seen in an accepted plan, by the id of its key there."""

    __tablename__ = "peer"

    site: Mapped[str] = mapped_column(primary_key=True)
    key_id: Mapped[str]


class NoiseMarkRow(Base):
    """The mark of one piece of noise that this site drew."""

    __tablename__ = "noise_mark"

    mark: Mapped[str] = mapped_column(primary_key=True)


class ProbeKeyRow(Base):
    """The secret under which this site makes its marks; one row."""

    __tablename__ = "probe_key"

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[bytes]


class TokenRow(Base):
    """A token of the site's HTTP service, as its hash. Times are ISO 8601 with their zone."""

    __tablename__ = "api_token"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    sha256: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]] = mapped_column(JSON)
    created_at: Mapped[str]
    revoked_at: Mapped[str | None]


SITE = Schema("site", Base.metadata, Path(__file__).parent / "migrations")


def open_schema(engine: Engine) -> None:
    """Make the tables that are missing in a new database. Raises StoreError for another version."""
    PRIVACY.open(engine)
    SITE.open(engine)


def upgrade_schema(engine: Engine) -> list[Upgrade]:
    """Bring every table of a site to this program's version. Raises StoreError."""
    return [PRIVACY.upgrade(engine), SITE.upgrade(engine)]
