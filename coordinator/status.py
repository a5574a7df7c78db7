"""The status of a job: what `auricle round status`, the demo and the pages show."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Collection

from sqlalchemy import Engine, select

from coordinator.job_records import ADMITTED, JobReader, JobRecord, JobState
from coordinator.planning import guarantees
from coordinator.store import ReleaseRow, RoundRow, UpdateRow
from privacy.plan import PrivacyMode
from privacy.store import reading


@dataclasses.dataclass(frozen=True)
class SiteStatus:
    """One site in one job; codes are "ok", a refusal's code, or None before the answer."""

    site: str
    online: bool
    plan_code: str | None
    release_code: str | None
    updates_admitted: int
    bytes_received: int


@dataclasses.dataclass(frozen=True)
class RoundStatus:
    """One round. `seconds` is from opening to the end of collecting, None while it collects."""

    number: int
    status: str
    admitted: tuple[str, ...]
    refused: dict[str, str]  # site: code
    stragglers: tuple[str, ...]  # expected, not answered
    seconds: float | None


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """A job as an operator sees it.

    Attributes:
        round: the latest round opened, 0 while preparing.
        rounds: T.
        epsilon_loc: spent so far at each site by the rounds opened; None means no guarantee.
        epsilon_sec: the same under secure aggregation with h honest sites.
        epsilon_cap: None: each site's cap is its own and is not told.
    """

    job: str
    purpose: str
    state: JobState
    reason: str | None
    round: int
    rounds: int
    rounds_done: int
    privacy_mode: PrivacyMode
    delta: float
    epsilon_loc: float | None
    epsilon_sec: float | None
    epsilon_cap: float | None
    honest_sites: int
    updates_admitted: int
    updates_refused: dict[str, int]  # code: count
    seconds_per_round: float | None
    release: str | None
    sites: tuple[SiteStatus, ...]
    latest_rounds: tuple[RoundStatus, ...]


def job_status(
    engine: Engine, job: str, online: Collection[str], latest_rounds: int = 5
) -> JobStatus:
    """The job's status from the database alone. Raises CoordinatorError if there is no such job."""
    record = JobReader(engine).load(job)
    plan = record.plan
    answers = _answers(engine, job)
    rounds = _rounds(engine, job, answers)
    refused = Counter(answer.code for answer in answers if answer.code != ADMITTED)
    durations = [entry.seconds for entry in rounds if entry.seconds is not None]
    opened = rounds[-1].number if rounds else 0
    epsilon_loc, epsilon_sec = guarantees(plan, opened)
    return JobStatus(
        job=job,
        purpose=plan.purpose,
        state=record.state,
        reason=record.reason,
        round=opened,
        rounds=plan.rounds,
        rounds_done=record.rounds_done,
        privacy_mode=plan.privacy_mode,
        delta=plan.delta,
        epsilon_loc=_finite(epsilon_loc),
        epsilon_sec=_finite(epsilon_sec),
        epsilon_cap=None,
        honest_sites=plan.honest_sites,
        updates_admitted=len(answers) - refused.total(),
        updates_refused=dict(refused),
        seconds_per_round=sum(durations) / len(durations) if durations else None,
        release=_release_name(engine, job),
        sites=tuple(_site(record, site, online, answers) for site in plan.sites),
        latest_rounds=tuple(rounds[-latest_rounds:]),
    )


@dataclasses.dataclass(frozen=True)
class _Answer:
    number: int
    site: str
    code: str
    size_bytes: int


def _answers(engine: Engine, job: str) -> list[_Answer]:
    query = select(UpdateRow.number, UpdateRow.site, UpdateRow.code, UpdateRow.size_bytes)
    with reading(engine) as session:
        rows = session.execute(query.where(UpdateRow.job == job).order_by(UpdateRow.site))
        return [_Answer(*row) for row in rows]


def _rounds(engine: Engine, job: str, answers: list[_Answer]) -> list[RoundStatus]:
    query = select(RoundRow).where(RoundRow.job == job).order_by(RoundRow.number)
    with reading(engine) as session:
        rows = session.scalars(query).all()
        return [_round(row, [a for a in answers if a.number == row.number]) for row in rows]


def _round(row: RoundRow, answers: list[_Answer]) -> RoundStatus:
    silent = set(json.loads(row.sites_json)) - {answer.site for answer in answers}
    return RoundStatus(
        number=row.number,
        status=row.status,
        admitted=tuple(answer.site for answer in answers if answer.code == ADMITTED),
        refused={answer.site: answer.code for answer in answers if answer.code != ADMITTED},
        stragglers=tuple(sorted(silent)),
        seconds=None if row.closed_at is None else row.closed_at - row.opened_at,
    )


def _site(
    record: JobRecord, site: str, online: Collection[str], answers: list[_Answer]
) -> SiteStatus:
    participant = record.participants[site]
    admitted = [a for a in answers if a.site == site and a.code == ADMITTED]
    return SiteStatus(
        site=site,
        online=site in online,
        plan_code=participant.plan_code,
        release_code=participant.release_code,
        updates_admitted=len(admitted),
        bytes_received=sum(answer.size_bytes for answer in admitted),
    )


def _release_name(engine: Engine, job: str) -> str | None:
    with reading(engine) as session:
        return session.scalar(select(ReleaseRow.release).where(ReleaseRow.job == job))


def _finite(epsilon: float) -> float | None:
    return None if math.isinf(epsilon) else epsilon
