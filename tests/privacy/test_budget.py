"""The budget: what may have been spent is never under-counted (I1), whatever crashes or races."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from privacy.accountant import MechanismEvent, epsilon
from privacy.budget import Budget, BudgetCaps, Reservation
from privacy.errors import BudgetError, LedgerError, PlanError
from privacy.plan import RoundPlan
from privacy.schema import PRIVACY
from privacy.store import open_engine
from tests.privacy.plans import DELTA, make_plan

PLAN = make_plan()
CAPS = BudgetCaps(delta=DELTA, default=8.0)
Ledger = list[tuple[str, dict[str, Any]]]


def composed(plan: RoundPlan, rounds: int) -> float:
    event = MechanismEvent(plan.sampling_rate, plan.noise_multiplier, rounds)
    return epsilon([event], DELTA) if rounds else 0.0


def cap_for(rounds: int) -> BudgetCaps:
    """Caps that admit exactly this many rounds of PLAN."""
    return BudgetCaps(
        delta=DELTA, default=(composed(PLAN, rounds) + composed(PLAN, rounds + 1)) / 2
    )


@pytest.fixture
def engine(url: str) -> Any:
    engine = open_engine(url)
    yield engine
    engine.dispose()


def open_budget(engine: Engine, caps: BudgetCaps = CAPS, ledger: Ledger | None = None) -> Budget:
    entries: Ledger = [] if ledger is None else ledger
    return Budget(engine, "north", caps, lambda kind, fields: entries.append((kind, fields)))


def refusal(budget: Budget, plan: RoundPlan, round: int) -> str:
    with pytest.raises((BudgetError, PlanError)) as caught:
        budget.reserve(plan, round)
    return caught.value.code


def test_rounds_are_composed_and_counted(engine: Engine) -> None:
    budget = open_budget(engine)
    first = budget.reserve(PLAN, 1)
    budget.reserve(PLAN, 2)
    budget.commit(first)
    state = budget.spent(PLAN.purpose)
    assert state.epsilon_loc == composed(PLAN, 2)
    assert (state.reserved, state.committed) == (1, 1)
    assert (state.epsilon_cap, state.delta) == (8.0, DELTA)
    assert state.remaining == 8.0 - composed(PLAN, 2)
    assert budget.spent("another purpose").epsilon_loc == 0


def test_a_round_past_the_cap_is_refused_and_spends_nothing(engine: Engine) -> None:
    ledger: Ledger = []
    budget = open_budget(engine, cap_for(3), ledger)
    for round in (1, 2, 3):
        assert budget.reserve(PLAN, round).fresh
    assert refusal(budget, PLAN, 4) == "budget-exceeded"
    assert budget.spent(PLAN.purpose).epsilon_loc == composed(PLAN, 3)
    assert len(ledger) == 3
    assert not budget.reserve(PLAN, 3).fresh  # what is paid for stays paid for


def test_a_cap_can_be_spent_to_the_last(engine: Engine) -> None:
    budget = open_budget(engine, BudgetCaps(delta=DELTA, default=composed(PLAN, 2)))
    budget.reserve(PLAN, 1)
    budget.reserve(PLAN, 2)
    assert budget.spent(PLAN.purpose).remaining == 0


def test_changing_the_job_does_not_start_a_new_budget(engine: Engine) -> None:
    budget = open_budget(engine, cap_for(1))
    budget.reserve(PLAN, 1)
    assert refusal(budget, make_plan(job="ffff"), 1) == "budget-exceeded"


def test_caps_are_by_purpose(engine: Engine) -> None:
    caps = BudgetCaps(delta=DELTA, per_purpose={"procedures": 5.0})
    budget = open_budget(engine, caps)
    assert refusal(budget, PLAN, 1) == "budget-exceeded"
    assert budget.reserve(make_plan(purpose="procedures"), 1).fresh
    assert budget.spent("procedures").epsilon_cap == 5.0


def test_the_same_round_is_leave_to_draw_noise_once(engine: Engine) -> None:
    budget = open_budget(engine)
    first = budget.reserve(PLAN, 1)
    again = budget.reserve(PLAN, 1)
    assert first.fresh
    assert not again.fresh
    assert dataclasses.replace(again, fresh=True) == first
    assert budget.spent(PLAN.purpose).epsilon_loc == composed(PLAN, 1)
    budget.commit(first)
    assert budget.reserve(PLAN, 1).committed


def test_a_round_is_not_reserved_under_two_plans(engine: Engine) -> None:
    budget = open_budget(engine)
    budget.reserve(PLAN, 1)
    assert refusal(budget, make_plan(noise_multiplier=1.0), 1) == "budget-conflict"


def test_plans_that_do_not_fit_are_refused(engine: Engine) -> None:
    budget = open_budget(engine)
    assert refusal(budget, make_plan(delta=1e-5), 1) == "budget-delta"
    assert refusal(budget, make_plan(sites=("south",), quorum=1, honest_sites=1), 1) == "plan-site"
    for round in (0, PLAN.rounds + 1):
        assert refusal(budget, PLAN, round) == "plan-round"
    assert budget.spent(PLAN.purpose).epsilon_loc == 0


def test_a_plan_without_noise_needs_explicit_leave_and_ends_the_budget(engine: Engine) -> None:
    bare = make_plan(privacy_mode="none", noise_multiplier=0, job="bae")
    boundless = BudgetCaps(delta=DELTA, default=math.inf)
    assert refusal(open_budget(engine, boundless), bare, 1) == "budget-unprotected"
    budget = open_budget(engine, dataclasses.replace(CAPS, allow_unprotected=True))
    budget.reserve(bare, 1)
    state = budget.spent(bare.purpose)
    assert (state.epsilon_loc, state.remaining) == (math.inf, 0.0)
    assert refusal(budget, PLAN, 1) == "budget-exceeded"


def test_a_job_that_does_not_fit_to_its_end_is_foreseen(engine: Engine) -> None:
    budget = open_budget(engine, cap_for(3))
    budget.reserve(PLAN, 1)
    budget.require_room(PLAN, 2)
    with pytest.raises(BudgetError) as caught:
        budget.require_room(PLAN, 3)
    assert caught.value.code == "budget-exceeded"
    assert budget.spent(PLAN.purpose).epsilon_loc == composed(PLAN, 1)


OTHER = make_plan(job="cafe", purpose="procedures")


def test_a_total_cap_composes_all_purposes(engine: Engine) -> None:
    cap = cap_for(3).default
    budget = open_budget(engine, BudgetCaps(delta=DELTA, default=8.0, total=cap))
    budget.reserve(PLAN, 1)
    budget.reserve(OTHER, 1)
    budget.reserve(OTHER, 2)
    assert refusal(budget, PLAN, 2) == refusal(budget, OTHER, 3) == "budget-exceeded"
    total, _ = budget.overall()
    # Composed, not added up: three rounds of two purposes cost what three of one do.
    assert (total.scope, total.epsilon_loc, total.rounds) == ("total", composed(PLAN, 3), 3)
    assert total.epsilon_cap == cap
    assert budget.purposes() == [PLAN.purpose, "procedures"]


def test_a_yearly_cap_begins_again_with_the_year_and_the_total_does_not(engine: Engine) -> None:
    now = [datetime(2026, 12, 31, 23, 59, tzinfo=UTC)]
    caps = BudgetCaps(
        delta=DELTA, default=99.0, yearly=cap_for(2).default, total=cap_for(3).default
    )
    budget = Budget(engine, "north", caps, lambda kind, fields: None, lambda: now[0])
    budget.reserve(PLAN, 1)
    budget.reserve(OTHER, 1)
    assert refusal(budget, PLAN, 2) == "budget-exceeded"
    # Midnight in UTC ends the year, whatever the clock's zone.
    now[0] = datetime(2026, 12, 31, 20, 0, tzinfo=timezone(timedelta(hours=-5)))
    total, year = budget.overall()
    assert (year.scope, year.epsilon_loc, total.rounds) == ("year 2027", 0.0, 2)
    budget.reserve(PLAN, 2)
    assert refusal(budget, PLAN, 3) == "budget-exceeded"  # the total, three rounds
    assert budget.overall()[1].epsilon_loc == composed(PLAN, 1)


def test_who_arrived_after_the_reservation_is_not_sampled_in_its_round(engine: Engine) -> None:
    budget = open_budget(engine)
    before = budget.position()
    reservation = budget.reserve(PLAN, 1)
    after = budget.position()
    assert before in budget.arrivals(reservation)
    assert after not in budget.arrivals(reservation)
    assert (budget.subject_epsilon(before), budget.subject_epsilon(after)) == (
        composed(PLAN, 1),
        0.0,
    )


def test_a_subject_at_its_cap_is_left_out_and_later_ones_go_on(engine: Engine) -> None:
    caps = BudgetCaps(delta=DELTA, default=99.0, subject=cap_for(2).default)
    budget = open_budget(engine, caps)
    arrived = [budget.position()]
    for round in (1, 2, 3, 4):
        reservation = budget.reserve(PLAN if round % 2 else OTHER, round)
        eligible = [joined for joined in arrived if joined in budget.arrivals(reservation)]
        # Two rounds each, and no more, from the one after arrival.
        assert eligible == arrived[max(0, round - 2) :][:2]
        for joined in eligible:
            assert budget.subject_epsilon(joined) <= caps.subject
        arrived.append(budget.position())
    # What the next round would cost is known before it.
    assert budget.subject_epsilon(arrived[-1], PLAN) == composed(PLAN, 1)


def test_no_one_round_above_the_subject_cap_samples_anybody(engine: Engine) -> None:
    budget = open_budget(engine, BudgetCaps(delta=DELTA, default=99.0, subject=0.01))
    assert list(budget.arrivals(budget.reserve(PLAN, 1))) == []


def test_a_subject_pays_from_its_arrival_and_for_every_purpose(engine: Engine) -> None:
    budget = open_budget(engine)
    assert budget.position() == 0
    budget.reserve(PLAN, 1)
    budget.reserve(make_plan(purpose="procedures", job="cafe"), 1)
    joined_after = budget.position()
    assert budget.subject_epsilon(joined_after) == 0
    budget.reserve(PLAN, 2)
    assert budget.subject_epsilon(joined_after) == composed(PLAN, 1)
    assert budget.subject_epsilon(0) == composed(PLAN, 3)


def test_only_a_held_reservation_commits(engine: Engine) -> None:
    budget = open_budget(engine)
    held = budget.reserve(PLAN, 1)
    budget.commit(held)
    budget.commit(held)
    for forged in (
        dataclasses.replace(held, sequence=held.sequence + 1),
        dataclasses.replace(held, round=2),
        dataclasses.replace(held, plan_sha256="00" * 32),
    ):
        with pytest.raises(BudgetError) as caught:
            budget.commit(forged)
        assert caught.value.code == "budget-unknown"
    assert budget.spent(PLAN.purpose).committed == 1


def test_sites_in_one_database_have_separate_budgets(engine: Engine) -> None:
    open_budget(engine).reserve(PLAN, 1)
    south = Budget(engine, "south", CAPS, lambda kind, fields: None)
    assert south.spent(PLAN.purpose).epsilon_loc == 0
    assert south.reserve(PLAN, 1).fresh


def test_the_ledger_gets_the_mechanism_and_nothing_about_the_data(engine: Engine) -> None:
    ledger: Ledger = []
    open_budget(engine, CAPS, ledger).reserve(PLAN, 1)
    expected = {
        "site": "north",
        "job": PLAN.job,
        "round": 1,
        "purpose": PLAN.purpose,
        "unit": "subject",
        "adjacency": "add_or_remove_one",
        "mechanism": "poisson-subsampled-gaussian",
        "sampling_rate": PLAN.sampling_rate,
        "noise_multiplier": PLAN.noise_multiplier,
        "clipping_norm": PLAN.clipping_norm,
        "delta": PLAN.delta,
        "steps": 1,
        "plan_sha256": PLAN.sha256,
        "base_sha256": PLAN.base_sha256,
    }
    assert ledger == [("budget.reserved", expected)]


def test_a_ledger_that_fails_stops_the_round_and_is_caught_up_later(engine: Engine) -> None:
    def broken(kind: str, fields: dict[str, Any]) -> None:
        raise LedgerError("the disk is full", remedy="free some space")

    with pytest.raises(LedgerError):
        Budget(engine, "north", CAPS, broken).reserve(PLAN, 1)
    ledger: Ledger = []
    budget = open_budget(engine, CAPS, ledger)
    assert [(fields["job"], fields["round"]) for _, fields in ledger] == [(PLAN.job, 1)]
    assert budget.spent(PLAN.purpose).epsilon_loc == composed(PLAN, 1)
    assert not budget.reserve(PLAN, 1).fresh
    open_budget(engine, CAPS, ledger)
    assert len(ledger) == 1


CRASH = """
import os, signal, sys
from privacy.budget import Budget, BudgetCaps
from privacy.plan import RoundPlan
from privacy.store import open_engine

def record(kind, fields):
    if sys.argv[2] == "before-record":
        os.kill(os.getpid(), signal.SIGKILL)

plan = RoundPlan.from_json(sys.stdin.buffer.read())
caps = BudgetCaps(delta=plan.delta, default=8.0)
Budget(open_engine(sys.argv[1]), "north", caps, record).reserve(plan, 1)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("moment", ["before-record", "while-training"])
def test_a_killed_process_has_spent_what_it_reserved(url: str, moment: str) -> None:
    died = subprocess.run(
        [sys.executable, "-c", CRASH, url, moment],
        input=PLAN.to_json(),
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    engine = open_engine(url)
    ledger: Ledger = []
    budget = open_budget(engine, CAPS, ledger)
    state = budget.spent(PLAN.purpose)
    assert (state.epsilon_loc, state.reserved) == (composed(PLAN, 1), 1)
    assert not budget.reserve(PLAN, 1).fresh
    assert len(ledger) == (1 if moment == "before-record" else 0)
    engine.dispose()


def race(url: str, caps: BudgetCaps, rounds: list[int]) -> list[Reservation | str]:
    """Reserve each round in a thread with its own connections, all at once."""
    barrier = threading.Barrier(len(rounds))

    def contend(round: int) -> Reservation | str:
        engine = open_engine(url)
        try:
            budget = open_budget(engine, caps)
            barrier.wait(timeout=30)
            return budget.reserve(PLAN, round)
        except BudgetError as error:
            return error.code
        finally:
            engine.dispose()

    with ThreadPoolExecutor(len(rounds)) as pool:
        return list(pool.map(contend, rounds))


@pytest.mark.parametrize("attempt", range(5))
def test_two_racing_for_the_last_of_the_budget_cannot_both_have_it(
    engine: Engine, url: str, attempt: int
) -> None:
    caps = cap_for(3)
    budget = open_budget(engine, caps)
    budget.reserve(PLAN, 1)
    budget.reserve(PLAN, 2)
    outcomes = race(url, caps, [3, 4])
    assert [type(outcome) for outcome in outcomes].count(Reservation) == 1
    assert "budget-exceeded" in outcomes
    assert budget.spent(PLAN.purpose).epsilon_loc == composed(PLAN, 3)


@pytest.mark.parametrize("attempt", range(5))
def test_two_racing_for_one_round_draw_noise_once(url: str, attempt: int) -> None:
    outcomes = race(url, CAPS, [1, 1])
    assert sorted(o.fresh for o in outcomes if isinstance(o, Reservation)) == [False, True]


def test_a_new_database_may_be_opened_by_several_at_once(tmp_path: Path) -> None:
    def open_new(file: Path, barrier: threading.Barrier) -> None:
        barrier.wait(timeout=30)
        engine = open_engine(f"sqlite:///{file}")
        PRIVACY.open(engine)
        engine.dispose()

    for attempt in range(30):
        barrier = threading.Barrier(4)
        with ThreadPoolExecutor(4) as pool:
            file = tmp_path / f"{attempt}.db"
            opened = [pool.submit(open_new, file, barrier) for _ in range(4)]
        assert [one.result() for one in opened] == [None] * 4
