"""The questions asked of a site's tables (`client_node.tables`).

All tables share `auricle.db` with the budget and the ledger, so that a crash leaves one consistent
state. `writing` and `reading` (privacy.store) open the transactions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import Engine, Select, func, select
from sqlalchemy.orm import Session

from client_node.errors import SiteError
from client_node.tables import PlanRow, RecordingRow, SubjectRow, open_schema
from privacy.accountant import MechanismEvent
from privacy.errors import BudgetError
from privacy.receipt import read_receipts
from privacy.store import ReservationRow, reading, writing

Split = Literal["train", "heldout"]
EVERYONE = range(2**31 - 1)


@dataclasses.dataclass(frozen=True)
class NewRecording:
    """A checked recording, ready to be stored. `duration_s` is measured, not claimed."""

    audio_sha256: str
    path: str
    text: str
    subject: str
    split: Split
    language: str | None
    duration_s: float
    terms: tuple[str, ...]
    consent: bool


@dataclasses.dataclass(frozen=True)
class Recording:
    """A stored recording. `subject_id` is a local number; the subject's name stays in the store."""

    id: int
    audio_sha256: str
    path: str
    text: str
    subject_id: int
    split: str
    language: str | None
    duration_s: float
    terms: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Subject:
    """A person, for the eyes of the site alone; `joined_after` as in `SubjectRow`."""

    name: str
    consent: bool
    joined_after: int


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a site holds: numbers fit for a log or a ledger entry kept at the site."""

    recordings: int
    subjects: int
    consenting_subjects: int
    duration_s: float


class SiteStore:
    """Recordings and subjects of one site."""

    def __init__(self, engine: Engine) -> None:
        open_schema(engine)
        self.engine = engine

    def add(self, recordings: Sequence[NewRecording]) -> int:
        """Insert or update `recordings` in one transaction; returns how many were new."""
        with writing(self.engine) as session:
            subjects = _upsert_subjects(session, recordings)
            known = {row.audio_sha256: row for row in session.scalars(select(RecordingRow))}
            added = 0
            for recording in recordings:
                row = known.get(recording.audio_sha256)
                if row is None:
                    row = RecordingRow(audio_sha256=recording.audio_sha256)
                    known[recording.audio_sha256] = row
                    session.add(row)
                    added += 1
                row.path, row.text = recording.path, recording.text
                row.subject_id = subjects[recording.subject].id
                row.split, row.language = recording.split, recording.language
                row.duration_s, row.terms = recording.duration_s, list(recording.terms)
            return added

    def placements(self) -> dict[str, tuple[str, str]]:
        """Subject name and split of every stored recording, by audio hash."""
        query = select(RecordingRow.audio_sha256, SubjectRow.name, RecordingRow.split).join(
            SubjectRow, SubjectRow.id == RecordingRow.subject_id
        )
        with reading(self.engine) as session:
            return {sha: (name, split) for sha, name, split in session.execute(query)}

    def trainable_subjects(self, arrivals: range = EVERYONE) -> list[int]:
        """Ids of the consenting subjects with a training recording, ascending.

        `arrivals` leaves out those whose `joined_after` it does not hold.
        """
        query = (
            select(SubjectRow.id)
            .join(RecordingRow, RecordingRow.subject_id == SubjectRow.id)
            .where(
                SubjectRow.consent.is_(True),
                RecordingRow.split == "train",
                SubjectRow.joined_after >= arrivals.start,
                SubjectRow.joined_after < arrivals.stop,
            )
            .distinct()
            .order_by(SubjectRow.id)
        )
        with reading(self.engine) as session:
            return list(session.scalars(query))

    def training_recordings(self, subject_ids: Collection[int]) -> dict[int, list[Recording]]:
        """Training recordings of the consenting ones among `subject_ids`, each list by id."""
        query = (
            select(RecordingRow)
            .join(SubjectRow, SubjectRow.id == RecordingRow.subject_id)
            .where(SubjectRow.consent.is_(True), RecordingRow.split == "train")
            .order_by(RecordingRow.id)
        )
        wanted = set(subject_ids)
        found: dict[int, list[Recording]] = {}
        for recording in self._recordings(query):
            if recording.subject_id in wanted:
                found.setdefault(recording.subject_id, []).append(recording)
        return found

    def recordings(self, split: Split | None = None) -> list[Recording]:
        """Recordings of consenting subjects, of one split or of both, by id."""
        query = (
            select(RecordingRow)
            .join(SubjectRow, SubjectRow.id == RecordingRow.subject_id)
            .where(SubjectRow.consent.is_(True))
            .order_by(RecordingRow.id)
        )
        if split is not None:
            query = query.where(RecordingRow.split == split)
        return self._recordings(query)

    def withdraw_consent(self, subject: str) -> list[str]:
        """Never sample `subject` again; returns the hashes of their recordings.

        Raises SiteError where no such subject is stored.
        """
        with writing(self.engine) as session:
            row = session.scalar(select(SubjectRow).where(SubjectRow.name == subject))
            if row is None:
                raise SiteError(
                    "no such subject is stored at this site",
                    remedy="check the subject id against the manifest that was imported",
                    code="subject-unknown",
                )
            row.consent = False
            hashes = select(RecordingRow.audio_sha256).where(RecordingRow.subject_id == row.id)
            return list(session.scalars(hashes))

    def subjects(self) -> list[Subject]:
        """Every person stored, by name."""
        with reading(self.engine) as session:
            rows = session.scalars(select(SubjectRow).order_by(SubjectRow.name))
            return [Subject(row.name, row.consent, row.joined_after) for row in rows]

    def counts(self) -> Counts:
        """Totals over everything stored."""
        with reading(self.engine) as session:
            recordings, duration_s = session.execute(
                select(func.count(), func.coalesce(func.sum(RecordingRow.duration_s), 0.0))
            ).one()
            subjects = session.scalar(select(func.count()).select_from(SubjectRow)) or 0
            consenting = (
                session.scalar(
                    select(func.count()).select_from(SubjectRow).where(SubjectRow.consent.is_(True))
                )
                or 0
            )
        return Counts(recordings, subjects, consenting, float(duration_s))

    def _recordings(self, query: Select[RecordingRow]) -> list[Recording]:
        names = [field.name for field in dataclasses.fields(Recording)]
        with reading(self.engine) as session:
            return [
                Recording(
                    **{name: getattr(row, name) for name in names} | {"terms": tuple(row.terms)}
                )
                for row in session.scalars(query)
            ]


class PlanBook:
    """Plans this site has accepted. A plan is kept as the bytes that were hashed and signed."""

    def __init__(self, engine: Engine) -> None:
        open_schema(engine)
        self._engine = engine

    def accept(self, job: str, plan_sha256: str, plan: bytes, basis: bytes) -> bool:
        """Remember a plan. False where `job` is already bound to a different plan."""
        with writing(self._engine) as session:
            row = session.get(PlanRow, job)
            if row is not None:
                return row.plan_sha256 == plan_sha256
            session.add(PlanRow(job=job, plan_sha256=plan_sha256, plan=plan, basis=basis))
            return True

    def find(self, job: str) -> tuple[bytes, bytes] | None:
        """The plan and basis bytes accepted for `job`."""
        with reading(self._engine) as session:
            row = session.get(PlanRow, job)
            return None if row is None else (row.plan, row.basis)


def _upsert_subjects(session: Session, recordings: Iterable[NewRecording]) -> dict[str, SubjectRow]:
    rows = {row.name: row for row in session.scalars(select(SubjectRow))}
    # In the transaction that stores them: a round reserved before it commits does not sample them.
    joined_after = session.scalar(select(func.max(ReservationRow.sequence))) or 0
    for recording in recordings:
        row = rows.get(recording.subject)
        if row is None:
            row = SubjectRow(
                name=recording.subject, consent=recording.consent, joined_after=joined_after
            )
            rows[recording.subject] = row
            session.add(row)
        # One refusal among a subject's recordings is a refusal; an import never undoes it.
        row.consent = row.consent and recording.consent
    session.flush()
    return rows


def require_whole_spend(engine: Engine, site: str, receipts: Path) -> None:
    """Refuse a database whose budget cannot be all that these recordings have spent (I1).

    Raises SiteError "site-renamed" where another name of this site has spent here, since a new
    name would begin a new budget, and BudgetError "budget-restored" where an update left (its
    receipt is kept) whose reservation is gone, as when an older copy of the database is put back.
    """
    query = select(ReservationRow.site, ReservationRow.job, ReservationRow.round)
    with reading(engine) as session:
        reserved = {(row.site, row.job, row.round) for row in session.execute(query)}
    if others := sorted({name for name, _, _ in reserved} - {site}):
        raise SiteError(
            f"this database holds the budget of site {others[0]}, and this one is {site}",
            remedy="set `site` in site.toml back to the old name; a site's name is for good",
            code="site-renamed",
        )
    for receipt in read_receipts(receipts):
        if receipt.kind == "update" and (site, receipt.job, receipt.round) not in reserved:
            raise BudgetError(
                f"the update of round {receipt.round} of job {receipt.job} left this site, and "
                "this database has no reservation of it: it is an older copy",
                remedy="put the latest database back; no round may run on this one",
                code="budget-restored",
            )


def mechanism_events(engine: Engine, site: str, purpose: str) -> list[MechanismEvent]:
    """Every reservation of `site` for `purpose`, for composing ε another way than the budget's."""
    mechanism = (
        ReservationRow.sampling_rate,
        ReservationRow.noise_multiplier,
        ReservationRow.adjacency,
    )
    query = (
        select(*mechanism, func.count())
        .where(ReservationRow.site == site, ReservationRow.purpose == purpose)
        .group_by(*mechanism)
    )
    with reading(engine) as session:
        return [
            MechanismEvent(rate, sigma, count, adjacency)
            for rate, sigma, adjacency, count in session.execute(query)
        ]
