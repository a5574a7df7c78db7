"""Jobs as they stand in the database: what the loop, the status and the pages read."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Literal, cast

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from coordinator.aggregate import pack
from coordinator.errors import CoordinatorError
from coordinator.request import JobRequest, parse_stored
from coordinator.rounds import RoundState, RoundStatus
from coordinator.store import JobRow, ParticipantRow, ReleaseRow, RoundRow, UpdateRow
from privacy.plan import RoundPlan
from privacy.store import reading
from privacy.update_encoding import decode

JobState = Literal["preparing", "running", "releasing", "released", "abandoned"]
FINISHED: frozenset[JobState] = frozenset({"released", "abandoned"})
ADMITTED = "admitted"


@dataclasses.dataclass(frozen=True)
class Participant:
    """A site's answers in one job: None, "ok", or a refusal's code."""

    plan_code: str | None
    release_code: str | None


@dataclasses.dataclass(frozen=True)
class JobRecord:
    """A job as it stands, without its large values.

    Attributes:
        rounds_done: rounds whose aggregate is checkpointed.
        round: the latest round, if one was opened.
        deadline_at_s: end of preparing or of releasing, seconds since the epoch.
    """

    job: str
    state: JobState
    reason: str | None
    request: JobRequest
    plan: RoundPlan
    plan_statement: bytes
    rounds_done: int
    deadline_at_s: float
    participants: dict[str, Participant]
    round: RoundState | None
    order_statement: bytes


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The large values of a job: frozen basis, trainable numbers, optimiser state."""

    basis: bytes
    weights: bytes
    optimiser: bytes


class JobReader:
    """Reads jobs; each method sees one committed state."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, job: str) -> JobRecord:
        """The job as committed. Raises CoordinatorError if there is none."""
        with reading(self._engine) as session:
            row = job_row(session, job)
            plan = RoundPlan.from_json(row.plan_json)
            latest = latest_round(session, job)
            people = participant_rows(session, job)
            return JobRecord(
                job=job,
                state=cast("JobState", row.state),
                reason=row.reason,
                request=parse_stored(row.request_json),
                plan=plan,
                plan_statement=row.plan_statement,
                rounds_done=row.rounds_done,
                deadline_at_s=row.deadline_at,
                participants={p.site: Participant(p.plan_code, p.release_code) for p in people},
                round=round_state(session, latest, plan.quorum) if latest else None,
                order_statement=latest.order_statement if latest else b"",
            )

    def checkpoint(self, job: str) -> Checkpoint:
        """The job's large values."""
        with reading(self._engine) as session:
            row = job_row(session, job)
            return Checkpoint(row.basis, row.weights, row.optimiser)

    def names(self) -> list[str]:
        """All jobs, oldest first."""
        with reading(self._engine) as session:
            return list(session.scalars(select(JobRow.job).order_by(JobRow.sequence)))

    def unfinished(self) -> list[str]:
        """Jobs that still need work, oldest first."""
        query = select(JobRow.job).where(JobRow.state.not_in(FINISHED)).order_by(JobRow.sequence)
        with reading(self._engine) as session:
            return list(session.scalars(query))

    def payload_seen(self, job: str, payload_sha256: str) -> bool:
        """Whether an update with this payload was ever admitted in `job`."""
        query = select(UpdateRow.site).where(
            UpdateRow.job == job,
            UpdateRow.payload_sha256 == payload_sha256,
            UpdateRow.code == ADMITTED,
        )
        with reading(self._engine) as session:
            return session.scalars(query.limit(1)).first() is not None

    def payloads(self, job: str, number: int) -> Iterator[bytes]:
        """The round's admitted updates in order of site name, one in memory at a time.

        Numbers are packed as float32, whatever the plan's encoding; masked words are as they came.
        """
        with reading(self._engine) as session:
            plan = RoundPlan.from_json(job_row(session, job).plan_json)
        for site in self.admitted_sites(job, number):
            with reading(self._engine) as session:
                payload = session.get_one(UpdateRow, (job, number, site)).payload
            assert payload is not None  # dropped only by finish_round
            if plan.update_encoding != "float32":
                payload = pack(decode(payload, plan.update_encoding, plan.adapter.size))
            yield payload

    def admitted_sites(self, job: str, number: int) -> list[str]:
        """Sites whose update is in round `number`, in order of name."""
        query = (
            select(UpdateRow.site)
            .where(UpdateRow.job == job, UpdateRow.number == number, UpdateRow.code == ADMITTED)
            .order_by(UpdateRow.site)
        )
        with reading(self._engine) as session:
            return list(session.scalars(query))

    def release(self, job: str) -> tuple[str, bytes, bytes]:
        """(name, manifest statement, adapter bytes) of the job's release."""
        with reading(self._engine) as session:
            row = session.scalars(select(ReleaseRow).where(ReleaseRow.job == job)).one()
            return row.release, row.statement, row.adapter


def job_row(session: Session, job: str) -> JobRow:
    """The row of `job`. Raises CoordinatorError if there is none."""
    row = session.scalar(select(JobRow).where(JobRow.job == job))
    if row is None:
        raise CoordinatorError(
            f"there is no job {job}",
            remedy="list the jobs and check the name",
            code="job-unknown",
        )
    return row


def participant_rows(session: Session, job: str) -> list[ParticipantRow]:
    """The rows of the sites that `job`'s plan names."""
    return list(session.scalars(select(ParticipantRow).where(ParticipantRow.job == job)))


def latest_round(session: Session, job: str) -> RoundRow | None:
    """The row of the job's latest round, if one was opened."""
    query = select(RoundRow).where(RoundRow.job == job).order_by(RoundRow.number.desc())
    return session.scalars(query.limit(1)).first()


def round_state(session: Session, row: RoundRow, quorum: int) -> RoundState:
    """The state machine's view of a stored round."""
    query = (
        select(UpdateRow.site, UpdateRow.code)
        .where(UpdateRow.job == row.job, UpdateRow.number == row.number)
        .order_by(UpdateRow.received_at, UpdateRow.site)
    )
    answers = [(answer.site, answer.code) for answer in session.execute(query)]
    return RoundState(
        number=row.number,
        sites=frozenset(json.loads(row.sites_json)),
        quorum=quorum,
        deadline_at_s=row.deadline_at,
        status=cast("RoundStatus", row.status),
        admitted=frozenset(site for site, code in answers if code == ADMITTED),
        refused=tuple(answer for answer in answers if answer[1] != ADMITTED),
        attempt=row.attempt,
    )
