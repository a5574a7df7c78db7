"""The Rényi filter: whatever is tried next, what it admitted stays within its budget."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.accountant import ADD_OR_REMOVE_ONE, REPLACE_ONE, MechanismEvent, epsilon
from privacy.errors import AccountingError, BudgetError
from privacy.renyi import ORDERS, divergences
from privacy.renyi_filter import RenyiFilter

DELTA = 1e-5
EXPECTED = MechanismEvent(0.1, 1.5)


def admits(guard: RenyiFilter) -> int:
    """How many rounds of EXPECTED it admits before it halts."""
    for rounds in range(10_000):
        try:
            guard.spend(EXPECTED)
        except BudgetError:
            return rounds
    raise AssertionError("the filter does not halt")


def epsilon_at(order: int, events: list[MechanismEvent]) -> float:
    """ε by Canonne, Kamath and Steinke's conversion, from the divergences at one order."""
    index = ORDERS.index(order)
    total = sum(
        event.count
        * divergences(event.sampling_rate, event.noise_multiplier, event.adjacency == REPLACE_ONE)[
            index
        ]
        for event in events
    )
    return float(total + math.log1p(-1 / order) - math.log(DELTA * order) / (order - 1))


@settings(max_examples=60, deadline=None)
@given(
    budget=st.floats(0.8, 12),
    adjacency=st.sampled_from([ADD_OR_REMOVE_ONE, REPLACE_ONE]),
    data=st.data(),
)
def test_no_sequence_chosen_as_it_goes_passes_the_budget(
    budget: float, adjacency: str, data: st.DataObject
) -> None:
    guard = RenyiFilter.expecting(budget, DELTA, EXPECTED)
    admitted: list[MechanismEvent] = []
    for _ in range(data.draw(st.integers(1, 40))):
        # What comes next may depend on everything so far: here, on what is left.
        event = MechanismEvent(
            data.draw(st.sampled_from([0.01, 0.1, 0.3, 1.0])),
            data.draw(st.sampled_from([0.7, 1.0, 3.0])) * (2 - guard.remaining),
            data.draw(st.integers(1, 5)),
            adjacency,
        )
        try:
            guard.spend(event)
        except BudgetError:
            break
        admitted.append(event)
    if admitted:
        assert epsilon_at(guard.order, admitted) <= budget * (1 + 1e-12)
        # The record of what ran, had it been fixed beforehand, is within the budget too.
        assert epsilon(admitted, DELTA) <= budget * (1 + 1e-3)


def test_it_halts_at_the_first_event_too_many_and_stays_halted() -> None:
    guard = RenyiFilter.expecting(2.0, DELTA, EXPECTED)
    rounds = admits(guard)
    with pytest.raises(BudgetError) as caught:
        guard.spend(EXPECTED)
    assert caught.value.code == "budget-filter-halted"
    assert guard.halted
    tiny = MechanismEvent(1e-4, 100.0)
    with pytest.raises(BudgetError):
        guard.spend(tiny)
    # Full use: one more round at this order would indeed have been too much.
    assert epsilon_at(guard.order, [EXPECTED] * rounds) <= 2.0
    assert epsilon_at(guard.order, [EXPECTED] * (rounds + 1)) > 2.0


def test_the_expected_order_admits_most() -> None:
    best = admits(RenyiFilter.expecting(2.0, DELTA, EXPECTED))
    assert best > 10
    for order in (8, 16, 32, 64):
        assert admits(RenyiFilter(2.0, DELTA, order)) <= best


def test_a_round_without_noise_is_never_admitted() -> None:
    guard = RenyiFilter(2.0, DELTA, 16)
    with pytest.raises(BudgetError):
        guard.spend(MechanismEvent(0.1, 0.0))
    with pytest.raises(AccountingError):
        RenyiFilter.expecting(2.0, DELTA, MechanismEvent(0.1, 0.0))


def test_a_mixed_adjacency_is_refused() -> None:
    guard = RenyiFilter(2.0, DELTA, 16)
    guard.spend(EXPECTED)
    with pytest.raises(AccountingError):
        guard.spend(MechanismEvent(0.1, 1.5, 1, REPLACE_ONE))


@pytest.mark.parametrize(
    ("budget", "delta", "order"),
    [(0.0, DELTA, 16), (math.inf, DELTA, 16), (1.0, 0.0, 16), (1.0, 1.0, 16), (1.0, DELTA, 3.5),
     (0.1, DELTA, 2)],
)  # fmt: skip
def test_impossible_filters_are_refused(budget: float, delta: float, order: int) -> None:
    with pytest.raises(AccountingError):
        RenyiFilter(budget, delta, order)
