"""No interleaving of reserving, committing, failing and restarting under-counts the spend (I1)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy.exc import OperationalError

from privacy import budget as budget_module
from privacy.accountant import MechanismEvent, epsilon
from privacy.budget import Budget, BudgetCaps, Reservation
from privacy.errors import BudgetError, LedgerError
from privacy.plan import RoundPlan
from privacy.store import open_engine
from tests.postgres import NewDatabase
from tests.privacy.plans import DELTA, make_plan

PLANS = [
    make_plan(job="a1", noise_multiplier=2.0, rounds=3),
    make_plan(job="b2", noise_multiplier=4.0, rounds=3),
    make_plan(job="c3", noise_multiplier=2.0, rounds=3, purpose="procedures"),
]
PURPOSES = sorted({plan.purpose for plan in PLANS})
CAPS = BudgetCaps(delta=DELTA, default=4.0)
plans = st.sampled_from(PLANS)
rounds = st.integers(1, 3)


class BudgetMachine(RuleBasedStateMachine):
    """Drives two budgets on one file against a model: which rounds got leave to draw noise."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.engines: list[Any] = []
        self.recorded: set[tuple[str, int]] = set()
        self.ledger_fails = False
        self.drawn: dict[tuple[str, int], RoundPlan] = {}  # noise may have been drawn
        self.attempted: dict[tuple[str, int], RoundPlan] = {}  # reserved, perhaps for nothing
        self.held: list[Reservation] = []
        self.url = self.new_url()
        self.open()

    def new_url(self) -> str:
        """URL of an empty database."""
        return f"sqlite:///{Path(self.folder.name) / 'auricle.db'}"

    def open(self) -> None:
        self.engines = [open_engine(self.url), open_engine(self.url)]
        self.budgets = [Budget(engine, "north", CAPS, self.record) for engine in self.engines]

    def record(self, kind: str, fields: dict[str, Any]) -> None:
        if self.ledger_fails:
            raise LedgerError("the disk is full", remedy="free some space")
        self.recorded.add((fields["job"], fields["round"]))

    @rule(plan=plans, round=rounds, process=st.integers(0, 1))
    def reserve(self, plan: RoundPlan, round: int, process: int) -> None:
        before = self.epsilon_of(self.attempted, plan.purpose)
        try:
            reservation = self.budgets[process].reserve(plan, round)
        except BudgetError:
            # Refused only for want of budget.
            more = {**self.attempted, (plan.job, round): plan}
            assert self.epsilon_of(more, plan.purpose) > CAPS.default
            assert self.epsilon_of(self.attempted, plan.purpose) == before
            return
        assert reservation.fresh == ((plan.job, round) not in self.attempted)
        self.attempted[plan.job, round] = plan
        self.held.append(reservation)
        if reservation.fresh:
            assert (plan.job, round) not in self.drawn
            self.drawn[plan.job, round] = plan

    @rule(plan=plans, round=rounds)
    def reserve_while_the_ledger_fails(self, plan: RoundPlan, round: int) -> None:
        self.ledger_fails = True
        try:
            self.budgets[0].reserve(plan, round)
        except LedgerError:
            self.attempted[plan.job, round] = plan
        except BudgetError:
            pass
        finally:
            self.ledger_fails = False

    @rule(plan=plans, round=rounds)
    def reserve_while_the_disk_fails(self, plan: RoundPlan, round: int) -> None:
        """A fault inside the transaction, after the decision and before the commit."""
        whole = budget_module._reservation
        known = (plan.job, round) in self.attempted

        def fault(*args: Any, **kwargs: Any) -> Reservation:
            raise OperationalError("INSERT", {}, OSError("disk I/O error"))

        budget_module._reservation = fault
        try:
            self.budgets[0].reserve(plan, round)
        except (OperationalError, BudgetError):
            pass
        finally:
            budget_module._reservation = whole
        # Rolled back: a later attempt must still be able to have the round, and be fresh.
        assert known == ((plan.job, round) in self.attempted)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), process=st.integers(0, 1))
    def commit(self, data: st.DataObject, process: int) -> None:
        self.budgets[process].commit(data.draw(st.sampled_from(self.held)))

    @rule()
    def crash_and_restart(self) -> None:
        for engine in self.engines:
            engine.dispose()
        self.held.clear()
        self.open()
        # What is spent is on the ledger as soon as the site is up again.
        assert self.recorded == set(self.attempted)

    def epsilon_of(self, rounds: dict[tuple[str, int], RoundPlan], purpose: str) -> float:
        events = [
            MechanismEvent(plan.sampling_rate, plan.noise_multiplier)
            for plan in rounds.values()
            if plan.purpose == purpose
        ]
        return epsilon(events, DELTA)

    @invariant()
    def spend_is_never_under_counted(self) -> None:
        for purpose in PURPOSES:
            for budget in self.budgets:
                state = budget.spent(purpose)
                assert state.epsilon_loc >= self.epsilon_of(self.drawn, purpose)
                assert state.epsilon_loc == self.epsilon_of(self.attempted, purpose)
                assert state.epsilon_loc <= CAPS.default
                assert state.remaining == CAPS.default - state.epsilon_loc

    @invariant()
    def whatever_drew_noise_is_on_the_ledger(self) -> None:
        assert set(self.drawn) <= self.recorded

    @invariant()
    def a_subject_pays_at_least_each_purpose(self) -> None:
        whole = self.budgets[0].subject_epsilon(0)
        assert all(whole >= self.epsilon_of(self.drawn, purpose) for purpose in PURPOSES)

    def teardown(self) -> None:
        for engine in self.engines:
            engine.dispose()
        self.folder.cleanup()


TestBudgetMachine = BudgetMachine.TestCase
TestBudgetMachine.settings = settings(max_examples=12, stateful_step_count=20, deadline=None)


@pytest.mark.slow
def test_no_interleaving_under_counts_on_postgresql(new_postgres: NewDatabase) -> None:
    class OnPostgres(BudgetMachine):
        def new_url(self) -> str:
            return new_postgres()

    run_state_machine_as_test(OnPostgres, settings=TestBudgetMachine.settings)
