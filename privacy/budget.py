"""The privacy budget of a site: reserved before a round trains, never handed back.

A reservation is written, durably, before any data is sampled. A crash at any later point leaves it
in place and it counts as spent (invariant I1: spend is never under-counted). What is stored is the
mechanism of each reservation; ε is derived by composing them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Engine, func, select
from sqlalchemy.orm import Session

from privacy.accountant import MechanismEvent, epsilon
from privacy.errors import BudgetError, PlanError
from privacy.plan import RoundPlan
from privacy.store import ReservationRow, create_tables, reading, writing

MECHANISM = "poisson-subsampled-gaussian"
RESERVED = "budget.reserved"
Record = Callable[[str, dict[str, Any]], object]


@dataclass(frozen=True, kw_only=True)
class BudgetCaps:
    """What a site allows in total, since it began.

    Attributes:
        delta: δ at which every cap holds; plans with another δ are refused.
        per_purpose: caps on ε_loc by purpose.
        default: cap on ε_loc of each purpose that `per_purpose` does not name.
        allow_unprotected: whether plans without noise (ε = ∞) may run. For synthetic data only.
    """

    delta: float
    per_purpose: Mapping[str, float] = field(default_factory=dict)
    default: float = 0.0
    allow_unprotected: bool = False

    def epsilon_cap(self, purpose: str) -> float:
        """Cap on ε_loc for `purpose`."""
        return self.per_purpose.get(purpose, self.default)


@dataclass(frozen=True)
class Reservation:
    """Leave to run one round's mechanism once.

    `fresh` is True for the one caller that made the reservation, who alone may draw noise under
    it. Everyone asking again gets False: the round has run, or died, and may only be answered
    from what was already sealed.
    """

    sequence: int
    job: str
    round: int
    purpose: str
    plan_sha256: str
    committed: bool
    fresh: bool


@dataclass(frozen=True)
class BudgetState:
    """Spend of one purpose: `reserved` and `committed` count rounds, and both are spent."""

    purpose: str
    epsilon_loc: float
    epsilon_cap: float
    remaining: float
    reserved: int
    committed: int
    delta: float


@dataclass(frozen=True)
class Budget:
    """Budget of `site` in the database of `engine`, shared safely by threads and processes.

    `record(kind, fields)` appends to the ledger. It is called after the reservation is durable
    and before `reserve` returns; a reservation that a crash kept out of the ledger is recorded
    when the budget is next opened or used. A crash between the two may record one twice: the pair
    (job, round) names it.
    """

    engine: Engine
    site: str
    caps: BudgetCaps
    record: Record
    _recording: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Create missing tables, and record what a crash left unrecorded."""
        create_tables(self.engine)
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
                self._check_cap(session, plan)
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

    def after(self, plan: RoundPlan, rounds: int) -> float:
        """ε_loc that the plan's purpose would have after `rounds` more rounds of `plan`."""
        with reading(self.engine) as session:
            events = self._events(session, ReservationRow.purpose == plan.purpose)
        more = [_event(plan, rounds)] if rounds else []
        return epsilon([*events, *more], self.caps.delta)

    def position(self) -> int:
        """Sequence number of the latest reservation, 0 before the first.

        Stored with a subject on arrival, it is `joined_after` in `subject_epsilon`.
        """
        latest = select(func.max(ReservationRow.sequence)).where(ReservationRow.site == self.site)
        with reading(self.engine) as session:
            return session.scalar(latest) or 0

    def subject_epsilon(self, joined_after: int) -> float:
        """ε of a subject over all purposes, from every reservation after number `joined_after`.

        A subject loses privacy through each round it might have been sampled for, whatever the
        round was for, and nothing through those before it arrived.
        """
        with reading(self.engine) as session:
            events = self._events(session, ReservationRow.sequence > joined_after)
        return epsilon(events, self.caps.delta)

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

    def _check_cap(self, session: Session, plan: RoundPlan) -> None:
        if plan.privacy_mode == "none":
            return  # allowed explicitly, or _check would have refused
        events = self._events(session, ReservationRow.purpose == plan.purpose)
        total = epsilon([*events, _event(plan, 1)], self.caps.delta)
        cap = self.caps.epsilon_cap(plan.purpose)
        if not total <= cap:
            raise _refused(
                f"one more round would bring ε for {plan.purpose} to {total:.4g}, over {cap:.4g}",
                BudgetError.code,
                remedy="end the job here, or have the site's policy raise the cap",
            )

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
