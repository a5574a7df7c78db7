"""The privacy budget of a site: reserved before a round trains, never handed back.

A reservation is written, durably, before any data is sampled. A crash at any later point leaves it
in place and it counts as spent (invariant I1: spend is never under-counted). What is stored is the
mechanism of each reservation; ε is derived by composing them.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select, true
from sqlalchemy.orm import Session

from privacy.accountant import MechanismEvent, epsilon
from privacy.budget_records import NO_CAP, BudgetCaps, BudgetState, Reservation, SpendLine
from privacy.errors import BudgetError, PlanError
from privacy.plan import RoundPlan
from privacy.schema import PRIVACY
from privacy.store import ReservationRow, reading, writing

__all__ = [
    "MECHANISM",
    "NO_CAP",
    "RESERVED",
    "Budget",
    "BudgetCaps",
    "BudgetState",
    "Reservation",
    "SpendLine",
]

MECHANISM = "poisson-subsampled-gaussian"
RESERVED = "budget.reserved"
Record = Callable[[str, dict[str, Any]], object]
Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Budget:
    """Budget of `site` in the database of `engine`, shared safely by threads and processes.

    `record(kind, fields)` appends to the ledger. It is called after the reservation is durable
    and before `reserve` returns; a reservation that a crash kept out of the ledger is recorded
    when the budget is next opened or used. A crash between the two may record one twice: the pair
    (job, round) names it. `clock` gives the time with its zone, for the yearly cap.
    """

    engine: Engine
    site: str
    caps: BudgetCaps
    record: Record
    clock: Clock = field(default=lambda: datetime.now(UTC))
    _recording: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Create missing tables, and record what a crash left unrecorded."""
        PRIVACY.open(self.engine)
        self._record_pending()

    def reserve(self, plan: RoundPlan, round: int) -> Reservation:
        """Spend one round of `plan`, or return the reservation that (job, round) already has.

        Raises BudgetError and spends nothing, codes: "budget-exceeded", "budget-delta" (the caps
        hold at another δ), "budget-unprotected" (ε would be ∞) and "budget-conflict" (the round
        is reserved under another plan); PlanError "plan-round" or "plan-site" when the plan has
        no such round or site; AccountingError when ε cannot be trusted.
        """
        self._check(plan, round)
        with writing(self.engine) as session:
            row = session.scalar(self._of_site(job=plan.job, round=round))
            fresh = row is None
            if row is None:
                self._check_caps(session, plan, 1)
                row = self._row(plan, round)
                session.add(row)
                session.flush()
            elif row.plan_sha256 != plan.sha256:
                raise _refused(
                    f"round {round} of job {plan.job} is already reserved under another plan",
                    "budget-conflict",
                    remedy="start a new job for a changed plan",
                )
            reservation = _reservation(row, fresh=fresh)
        self._record_pending()
        return reservation

    def commit(self, reservation: Reservation) -> None:
        """Note that the round's update was sealed. Changes no spend; committing again is harmless.

        Raises BudgetError "budget-unknown" for a reservation that this budget does not hold.
        """
        with writing(self.engine) as session:
            row = session.scalar(
                self._of_site(
                    sequence=reservation.sequence,
                    job=reservation.job,
                    round=reservation.round,
                    plan_sha256=reservation.plan_sha256,
                )
            )
            if row is None:
                raise _refused(
                    f"no reservation is held for round {reservation.round} of {reservation.job}",
                    "budget-unknown",
                    remedy="discard the update: it was not paid for; check which database is open",
                )
            row.committed = True

    def spent(self, purpose: str) -> BudgetState:
        """Spend and cap of `purpose` now."""
        of_purpose = ReservationRow.purpose == purpose
        with reading(self.engine) as session:
            events = self._events(session, of_purpose)
            count = select(func.count()).where(ReservationRow.site == self.site, of_purpose)
            committed = session.scalar(count.where(ReservationRow.committed)) or 0
        total = sum(event.count for event in events)
        spent, cap = epsilon(events, self.caps.delta), self.caps.epsilon_cap(purpose)
        remaining = max(0.0, cap - spent)
        return BudgetState(
            purpose, spent, cap, remaining, total - committed, committed, self.caps.delta
        )

    def purposes(self) -> list[str]:
        """Every purpose that has a cap of its own or has been spent on, in order of name."""
        query = select(ReservationRow.purpose).where(ReservationRow.site == self.site).distinct()
        with reading(self.engine) as session:
            return sorted({*self.caps.per_purpose, *session.scalars(query)})

    def overall(self) -> tuple[SpendLine, SpendLine]:
        """Spend over all purposes: since the site began, and in this calendar year."""
        with reading(self.engine) as session:
            total, year = self._line(session, None), self._line(session, self._year())
        return total, year

    def require_room(self, plan: RoundPlan, rounds: int) -> None:
        """Raise BudgetError "budget-exceeded" unless `rounds` more rounds fit under every cap.

        All of them are taken to fall in this year.
        """
        with reading(self.engine) as session:
            self._check_caps(session, plan, rounds)

    def position(self) -> int:
        """Sequence number of the latest reservation, 0 before the first.

        Stored with a subject on arrival, it is `joined_after` in `subject_epsilon`.
        """
        latest = select(func.max(ReservationRow.sequence)).where(ReservationRow.site == self.site)
        with reading(self.engine) as session:
            return session.scalar(latest) or 0

    def subject_epsilon(self, joined_after: int, coming: RoundPlan | None = None) -> float:
        """ε of a subject over all purposes, from every reservation after number `joined_after`.

        A subject loses privacy through each round it might have been sampled for, whatever the
        round was for, and nothing through those before it arrived. With `coming`, one more round
        of that plan is counted.
        """
        with reading(self.engine) as session:
            return self._subject_epsilon(session, joined_after, coming)

    def arrivals(self, reservation: Reservation) -> range:
        """Which subjects the reserved round may sample, by the `joined_after` of their arrival.

        Not those whom it would bring over `caps.subject`, nor those who arrived once the round
        was reserved, who do not pay for it. Both follow from public rounds and a subject's own
        arrival, so that nobody's eligibility depends on anybody else.
        """
        sequence = reservation.sequence
        if self.caps.subject == NO_CAP:
            return range(sequence)
        with reading(self.engine) as session:
            # Who joined later has spent less: the first position that fits under the cap.
            first = bisect_left(
                range(sequence),
                True,
                key=lambda joined: self._subject_epsilon(session, joined) <= self.caps.subject,
            )
        return range(first, sequence)

    def _subject_epsilon(
        self, session: Session, joined_after: int, coming: RoundPlan | None = None
    ) -> float:
        events = self._events(session, ReservationRow.sequence > joined_after)
        more = [_event(coming, 1)] if coming else []
        return epsilon([*events, *more], self.caps.delta)

    def _check(self, plan: RoundPlan, round: int) -> None:
        if self.site not in plan.sites:
            raise _misfit(f"the plan does not name site {self.site}", "plan-site")
        if not 1 <= round <= plan.rounds:
            raise _misfit(f"the plan has {plan.rounds} rounds and no round {round}", "plan-round")
        if plan.delta != self.caps.delta:
            raise _refused(
                f"the plan states δ = {plan.delta}; this site's caps hold at {self.caps.delta}",
                "budget-delta",
                remedy="ask for a plan with the site's δ",
            )
        if plan.privacy_mode == "none" and not self.caps.allow_unprotected:
            raise _refused(
                "the plan adds no noise, which no budget covers (ε is infinite)",
                "budget-unprotected",
                remedy="ask for a plan with noise; only synthetic data may be trained without",
            )

    def _check_caps(self, session: Session, plan: RoundPlan, rounds: int) -> None:
        if plan.privacy_mode == "none":
            return  # allowed explicitly, or _check would have refused
        year, caps = self._year(), self.caps
        limits = (
            (plan.purpose, ReservationRow.purpose == plan.purpose, caps.epsilon_cap(plan.purpose)),
            ("all purposes", true(), caps.total),
            (f"all purposes in {year}", ReservationRow.year == year, caps.yearly),
        )
        for name, which, cap in limits:
            if cap == NO_CAP:
                continue
            spent = epsilon([*self._events(session, which), _event(plan, rounds)], caps.delta)
            if not spent <= cap:
                raise _refused(
                    f"{rounds} more rounds would bring ε for {name} to {spent:.4g}, over {cap:.4g}",
                    BudgetError.code,
                    remedy="end the job here, ask for more noise or fewer rounds, or have the "
                    "site's policy raise the cap",
                )

    def _line(self, session: Session, year: int | None) -> SpendLine:
        which = true() if year is None else ReservationRow.year == year
        events = self._events(session, which)
        scope, cap = ("total", self.caps.total)
        if year is not None:
            scope, cap = f"year {year}", self.caps.yearly
        rounds = sum(event.count for event in events)
        return SpendLine(scope, epsilon(events, self.caps.delta), cap, rounds)

    def _year(self) -> int:
        return self.clock().astimezone(UTC).year

    def _events(self, session: Session, which: ColumnElement[bool]) -> list[MechanismEvent]:
        mechanism = (
            ReservationRow.sampling_rate,
            ReservationRow.noise_multiplier,
            ReservationRow.adjacency,
        )
        query = (
            select(*mechanism, func.count())
            .where(ReservationRow.site == self.site, which)
            .group_by(*mechanism)
        )
        return [
            MechanismEvent(rate, sigma, count, adjacency)
            for rate, sigma, adjacency, count in session.execute(query)
        ]

    def _of_site(self, **where: object) -> Any:
        return select(ReservationRow).filter_by(site=self.site, **where)

    def _row(self, plan: RoundPlan, round: int) -> ReservationRow:
        return ReservationRow(
            site=self.site,
            job=plan.job,
            round=round,
            purpose=plan.purpose,
            plan_sha256=plan.sha256,
            base_sha256=plan.base_sha256,
            unit=plan.unit,
            adjacency=plan.adjacency,
            sampling_rate=plan.sampling_rate,
            noise_multiplier=plan.noise_multiplier,
            clipping_norm=plan.clipping_norm,
            delta=plan.delta,
            year=self._year(),
            committed=False,
            recorded=False,
        )

    def _record_pending(self) -> None:
        # The ledger has its own transactions, on this same SQLite file: recording inside ours
        # would wait for itself.
        with self._recording:
            with reading(self.engine) as session:
                query = self._of_site(recorded=False).order_by(ReservationRow.sequence)
                pending = [(row.sequence, _fields(row)) for row in session.scalars(query)]
            for sequence, fields in pending:
                self.record(RESERVED, fields)
                with writing(self.engine) as session:
                    session.get_one(ReservationRow, sequence).recorded = True


def _event(plan: RoundPlan, count: int) -> MechanismEvent:
    return MechanismEvent(plan.sampling_rate, plan.noise_multiplier, count, plan.adjacency)


def _fields(row: ReservationRow) -> dict[str, Any]:
    return {
        "job": row.job,
        "round": row.round,
        "site": row.site,
        "purpose": row.purpose,
        "unit": row.unit,
        "adjacency": row.adjacency,
        "mechanism": MECHANISM,
        "sampling_rate": row.sampling_rate,
        "noise_multiplier": row.noise_multiplier,
        "clipping_norm": row.clipping_norm,
        "delta": row.delta,
        "steps": 1,
        "plan_sha256": row.plan_sha256,
        "base_sha256": row.base_sha256,
    }


def _reservation(row: ReservationRow, *, fresh: bool) -> Reservation:
    return Reservation(
        row.sequence, row.job, row.round, row.purpose, row.plan_sha256, row.committed, fresh
    )


def _refused(problem: str, code: str, *, remedy: str) -> BudgetError:
    return BudgetError(problem, remedy=remedy, code=code)


def _misfit(problem: str, code: str) -> PlanError:
    return PlanError(problem, remedy="ask the coordinator's operator about the job", code=code)
