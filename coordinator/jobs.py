"""Transitions of jobs: each one transaction, and nothing outside the database is state.

A job goes preparing -> running -> releasing -> released; from the first two it may be abandoned
(below quorum) and resumed. Whatever a method writes is durable when it returns, together with the
journal entries that it owes, so that a killed coordinator goes on where the last transaction ended.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from sqlalchemy import delete, update
from sqlalchemy.orm import Session

from coordinator.errors import CoordinatorError
from coordinator.job_records import (
    ADMITTED,
    Checkpoint,
    JobReader,
    job_row,
    latest_round,
    participant_rows,
    round_state,
)
from coordinator.journal import note
from coordinator.registry import quarantine
from coordinator.release_records import SiteAnswer, enter, keep_answer
from coordinator.request import JobRequest, parse_stored, request_json
from coordinator.rounds import (
    CLOSED,
    OK,
    Aggregated,
    ClockRead,
    Event,
    OrdersSent,
    Reopened,
    RoundState,
    SiteRefused,
    SumLost,
    UpdateAdmitted,
    advance,
    weigh_codes,
)
from coordinator.secure_records import clear_steps, forget_refusals, sum_begun
from coordinator.shortfall import Shortfall
from coordinator.store import JobRow, ParticipantRow, ReleaseRow, RoundRow, UpdateRow
from privacy.parcel import UpdateHeader
from privacy.plan import RoundPlan
from privacy.store import writing


@dataclasses.dataclass(frozen=True)
class NewJob:
    """All that a job starts from."""

    request: JobRequest
    plan: RoundPlan
    plan_statement: bytes
    checkpoint: Checkpoint


class Jobs(JobReader):
    """Reads jobs and moves them on: one method, one transaction."""

    def create(self, new: NewJob, now_s: float) -> None:
        """Store a job in state preparing."""
        plan = new.plan
        row = JobRow(
            job=plan.job,
            state="preparing",
            request_json=request_json(new.request),
            plan_json=plan.to_json(),
            plan_statement=new.plan_statement,
            basis=new.checkpoint.basis,
            rounds_done=0,
            weights=new.checkpoint.weights,
            optimiser=new.checkpoint.optimiser,
            created_at=now_s,
            deadline_at=now_s + plan.deadline_s,
        )
        with writing(self._engine) as session:
            session.add(row)
            session.add_all(ParticipantRow(job=plan.job, site=site) for site in plan.sites)
            fields = {"job": plan.job, "plan_sha256": plan.sha256, "sites": list(plan.sites)}
            note(session, "job.planned", fields | {"purpose": plan.purpose})

    def answer_plan(self, job: str, site: str, code: str) -> None:
        """`site` accepted the plan ("ok") or refused it with `code`."""
        with writing(self._engine) as session:
            session.get_one(ParticipantRow, (job, site)).plan_code = code
            note(session, "plan.answered", {"job": job, "site": site, "code": code})

    def start_if_ready(self, job: str, now_s: float) -> None:
        """Preparing ends when all have answered or time is up: run, or abandon below quorum."""
        with writing(self._engine) as session:
            row = job_row(session, job)
            plan = RoundPlan.from_json(row.plan_json)
            people = participant_rows(session, job)
            late = now_s >= row.deadline_at
            match weigh_codes([person.plan_code for person in people], plan.quorum, late):
                case "enough":
                    row.state = "running"
                case "too-few":
                    codes = {person.site: person.plan_code for person in people}
                    silent = sorted(site for site, code in codes.items() if code is None)
                    refused = {s: c for s, c in sorted(codes.items()) if c and c != OK}
                    _abandon(session, row, 0, Shortfall(refused, silent, late), now_s)
                case "wait":
                    pass

    def open_round(
        self, job: str, number: int, sites: frozenset[str], order_statement: bytes, *, now_s: float
    ) -> None:
        """Open round `number` for `sites`."""
        with writing(self._engine) as session:
            plan = RoundPlan.from_json(job_row(session, job).plan_json)
            row = RoundRow(
                job=job,
                number=number,
                status="open",
                attempt=1,
                sites_json=json.dumps(sorted(sites)),
                opened_at=now_s,
                deadline_at=now_s + plan.deadline_s,
                order_statement=order_statement,
            )
            session.add(row)
            note(session, "round.opened", {"job": job, "round": number, "sites": sorted(sites)})

    def orders_sent(self, job: str, number: int) -> None:
        """The round's order is on its way to at least one site."""
        self._apply(job, number, OrdersSent(), 0.0)

    def read_clock(self, job: str, number: int, now_s: float) -> None:
        """Close the round's collecting where the deadline or the answers say so."""
        self._apply(job, number, ClockRead(now_s), now_s)

    def admit(
        self,
        job: str,
        number: int,
        site: str,
        header: UpdateHeader,
        payload: bytes,
        *,
        now_s: float,
    ) -> None:
        """Keep an update that passed admission."""
        answer = {
            "code": ADMITTED,
            "payload_sha256": header.payload_sha256,
            "size_bytes": header.size_bytes,
            "payload": payload,
        }
        heads = {"site_tree_size": header.tree_size, "site_tree_head": header.tree_head}
        self._answer_round(job, number, UpdateAdmitted(site), answer, evidence=heads, now_s=now_s)

    def refuse(
        self, job: str, number: int, site: str, code: str, *, now_s: float, hostile: bool = False
    ) -> None:
        """`site` gives nothing this round; a hostile site is quarantined as well."""
        answer = {"code": code, "payload_sha256": "", "size_bytes": 0, "payload": None}
        event = SiteRefused(site, code)
        self._answer_round(job, number, event, answer, evidence={}, now_s=now_s, hostile=hostile)

    def finish_round(
        self,
        job: str,
        number: int,
        weights: bytes,
        optimiser: bytes,
        *,
        facts: dict[str, Any],
        now_s: float,
    ) -> None:
        """Checkpoint the round's result and drop its payloads, in one transaction.

        `facts` are the fields that the ledger records of the round.
        """
        with writing(self._engine) as session:
            state = _apply(session, job, number, Aggregated(), now_s)
            row = job_row(session, job)
            row.weights, row.optimiser, row.rounds_done = weights, optimiser, number
            session.execute(
                update(UpdateRow)
                .where(UpdateRow.job == job, UpdateRow.number == number)
                .values(payload=None)
            )
            clear_steps(session, job, number)
            outcome = {"admitted": sorted(state.admitted), "missing": list(state.missing)}
            note(session, "round.aggregated", {"job": job, "round": number} | outcome | facts)

    def lose_sum(self, job: str, number: int, code: str, *, now_s: float) -> None:
        """Abandon a round whose secure sum cannot be had, for the reason `code`."""
        with writing(self._engine) as session:
            _apply(session, job, number, SumLost(), now_s)
            job_row(session, job).reason = f"the secure sum of round {number} was lost: {code}"
            note(session, "sum.lost", {"job": job, "round": number, "code": code})

    def begin_release(
        self, job: str, release: str, statement: bytes, adapter: bytes, *, now_s: float
    ) -> None:
        """Store the signed release, and start handing it out unless the job asked to hold it."""
        with writing(self._engine) as session:
            row = job_row(session, job)
            row.state = "releasing"
            row.deadline_at = now_s + RoundPlan.from_json(row.plan_json).deadline_s
            session.add(
                ReleaseRow(
                    release=release, job=job, statement=statement, adapter=adapter, created_at=now_s
                )
            )
            note(session, "release.signed", {"job": job, "release": release})
            held = parse_stored(row.request_json).hold
            enter(session, release, "held" if held else "published", now_s)

    def answer_release(self, job: str, release: str, answer: SiteAnswer) -> None:
        """A site activated the job's release ("ok") or refused it with a code."""
        site, code = answer.site, answer.code
        with writing(self._engine) as session:
            session.get_one(ParticipantRow, (job, site)).release_code = code
            keep_answer(session, release, answer)
            note(session, "release.answered", {"job": job, "site": site, "code": code})

    def finish(self, job: str, now_s: float) -> None:
        """The release is out."""
        with writing(self._engine) as session:
            row = job_row(session, job)
            row.state, row.finished_at = "released", now_s
            note(session, "job.released", {"job": job})

    def abandon(self, job: str, code: str, now_s: float) -> None:
        """End a job that cannot go on for the reason `code`; it may be resumed."""
        with writing(self._engine) as session:
            row = job_row(session, job)
            row.state, row.reason, row.finished_at = "abandoned", code, now_s
            note(session, "job.failed", {"job": job, "code": code})

    def resume(self, job: str, now_s: float) -> None:
        """Give an abandoned job another chance at the same round, with the updates it has.

        Sites answer a repeated order with the bytes they sent before: no ε is spent twice. Raises
        CoordinatorError unless the job is abandoned.
        """
        with writing(self._engine) as session:
            row = job_row(session, job)
            if row.state != "abandoned":
                raise CoordinatorError(
                    f"job {job} is {row.state}, not abandoned",
                    remedy="only an abandoned job can be resumed",
                    code="job-not-abandoned",
                )
            latest = latest_round(session, job)
            row.state = "running" if latest else "preparing"
            row.reason, row.finished_at = None, None
            deadline_at_s = now_s + RoundPlan.from_json(row.plan_json).deadline_s
            row.deadline_at = deadline_at_s
            for person in participant_rows(session, job):
                person.plan_code = OK if person.plan_code == OK else None
            if latest and latest.status == "abandoned":
                closed = sum_begun(session, job, latest.number)
                _apply(session, job, latest.number, Reopened(deadline_at_s, closed), now_s)
                if closed:
                    forget_refusals(session, job, latest.number)
                else:
                    gone = (UpdateRow.job == job, UpdateRow.number == latest.number)
                    session.execute(delete(UpdateRow).where(*gone, UpdateRow.code != ADMITTED))
            note(session, "job.resumed", {"job": job})

    def renew_deadline(self, job: str, now_s: float) -> None:
        """After a restart: the time that the coordinator was down does not count."""
        with writing(self._engine) as session:
            row = job_row(session, job)
            deadline_at_s = now_s + RoundPlan.from_json(row.plan_json).deadline_s
            row.deadline_at = deadline_at_s
            latest = latest_round(session, job)
            if latest and latest.status not in CLOSED:
                latest.deadline_at = deadline_at_s

    def _apply(self, job: str, number: int, event: Event, now_s: float) -> None:
        with writing(self._engine) as session:
            _apply(session, job, number, event, now_s)

    def _answer_round(
        self,
        job: str,
        number: int,
        event: UpdateAdmitted | SiteRefused,
        answer: dict[str, Any],
        *,
        evidence: dict[str, Any],
        now_s: float,
        hostile: bool = False,
    ) -> None:
        with writing(self._engine) as session:
            _apply(session, job, number, event, now_s)
            row = UpdateRow(job=job, number=number, site=event.site, received_at=now_s, **answer)
            session.add(row)
            fields = {"job": job, "round": number, "site": event.site, "code": row.code}
            digest = {"payload_sha256": row.payload_sha256, "size_bytes": row.size_bytes}
            note(session, "update.answered", fields | digest | evidence)
            if hostile:
                quarantine(session, event.site, row.code)


def _apply(session: Session, job: str, number: int, event: Event, now_s: float) -> RoundState:
    """Advance a stored round by `event`; an abandoned round abandons its job."""
    row = session.get_one(RoundRow, (job, number))
    owner = job_row(session, job)
    before = round_state(session, row, RoundPlan.from_json(owner.plan_json).quorum)
    after = advance(before, event)
    row.status, row.attempt, row.deadline_at = after.status, after.attempt, after.deadline_at_s
    if after.status != before.status and after.status in ("aggregating", "abandoned"):
        row.closed_at = now_s
    if after.status == "abandoned" != before.status:
        late = now_s >= before.deadline_at_s
        shortfall = Shortfall(dict(sorted(after.refused)), list(after.missing), late)
        _abandon(session, owner, number, shortfall, now_s)
    return after


def _abandon(
    session: Session, row: JobRow, number: int, shortfall: Shortfall, now_s: float
) -> None:
    what = f"round {number} stayed below quorum" if number else "below quorum"
    row.state, row.finished_at = "abandoned", now_s
    row.reason = shortfall.explain(what)
    fields = {"job": row.job, "round": number}
    lacking = {"missing": shortfall.missing, "refused": shortfall.refused}
    note(session, "job.abandoned", fields | lacking)
