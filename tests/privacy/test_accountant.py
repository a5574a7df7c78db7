"""The accountant: reference values, composition, and refusal when two opinions differ."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from privacy import accountant, renyi
from privacy.accountant import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    Composition,
    MechanismEvent,
    accountant_versions,
    epsilon,
    epsilon_sec,
    noise_multiplier_for,
)
from privacy.errors import AccountingError
from privacy.loss_distribution import Composed

DELTA = 1e-6
REFERENCE = MechanismEvent(sampling_rate=0.05, noise_multiplier=1.031, count=500)


def test_reference_epsilon_trusting_nobody() -> None:
    assert epsilon([REFERENCE], DELTA) == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize(
    ("honest_sites", "expected"),
    [(1, 8.0), (2, 4.46), (3, 3.34), (5, 2.39), (10, 1.58), (20, 1.06)],
)
def test_reference_epsilon_under_secure_aggregation(honest_sites: int, expected: float) -> None:
    assert epsilon_sec([REFERENCE], DELTA, honest_sites) == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("sigma", "count"), [(0.8, 1), (2.0, 1), (5.0, 40), (20.0, 400)])
def test_without_subsampling_it_is_the_analytic_gaussian(sigma: float, count: int) -> None:
    """Balle and Wang 2018 (arXiv:1805.06530), theorem 8, for a Gaussian of σ/√T."""
    mu = math.sqrt(count) / sigma

    def excess(eps: float) -> float:
        low, high = stats.norm.cdf(mu / 2 - eps / mu), stats.norm.logcdf(-mu / 2 - eps / mu)
        return float(low - math.exp(eps + high) - DELTA)

    exact = optimize.brentq(excess, 0, 200)
    found = epsilon([MechanismEvent(1.0, sigma, count)], DELTA)
    assert exact <= found <= exact * 1.002


def test_composition_is_not_addition_and_order_does_not_matter() -> None:
    one, other = MechanismEvent(0.05, 1.031, 20), MechanismEvent(0.2, 3.0, 10)
    composed = epsilon([one, other], DELTA)
    assert max(epsilon([one], DELTA), epsilon([other], DELTA)) < composed
    assert composed < epsilon([one], DELTA) + epsilon([other], DELTA)
    assert composed == epsilon([other, one], DELTA)
    assert composed == epsilon([other, *[MechanismEvent(0.05, 1.031)] * 20], DELTA)


def test_a_round_without_noise_costs_everything() -> None:
    assert epsilon([MechanismEvent(0.1, 0.0)], DELTA) == math.inf
    assert epsilon([REFERENCE, MechanismEvent(0.1, 0.0)], DELTA) == math.inf
    assert epsilon_sec([MechanismEvent(0.1, 0.0)], DELTA, 20) == math.inf


def test_nothing_run_costs_nothing() -> None:
    assert epsilon([], DELTA) == 0


@settings(max_examples=10, deadline=None)
@given(
    rate=st.sampled_from([0.01, 0.05, 0.3, 1.0]),
    sigma=st.floats(0.7, 30),
    count=st.integers(1, 600),
    delta=st.sampled_from([1e-7, 1e-6, 1e-5]),
)
def test_epsilon_grows_with_rounds_and_falls_with_noise(
    rate: float, sigma: float, count: int, delta: float
) -> None:
    here = epsilon([MechanismEvent(rate, sigma, count)], delta)
    assert 0 <= here < math.inf
    assert epsilon([MechanismEvent(rate, sigma, count + 1)], delta) >= here
    # The discretisation steps with σ; it may cost a thousandth, never more.
    assert epsilon([MechanismEvent(rate, sigma * 1.01, count)], delta) <= here * 1.001 + 1e-6


@pytest.mark.parametrize(
    ("rate", "sigma", "count"), [(0.05, 2.0, 1), (0.005, 2.0, 3), (0.3, 0.5, 300)]
)
def test_the_known_looseness_of_renyi_is_no_disagreement(
    rate: float, sigma: float, count: int
) -> None:
    rdp = renyi.epsilon_of(count * renyi.divergences(rate, sigma, False), DELTA)
    assert rdp > accountant.RDP_LOOSENESS * epsilon([MechanismEvent(rate, sigma, count)], DELTA)


@pytest.mark.parametrize("adjacency", [ADD_OR_REMOVE_ONE, REPLACE_ONE])
@pytest.mark.parametrize("factor", [0.5, 1.5])
def test_accountants_that_disagree_are_refused(
    monkeypatch: pytest.MonkeyPatch, factor: float, adjacency: str
) -> None:
    honest = Composed.epsilon
    monkeypatch.setattr(Composed, "epsilon", lambda self, delta: factor * honest(self, delta))
    accountant._agrees_when_repeated.cache_clear()
    try:
        with pytest.raises(AccountingError) as caught:
            Composition([replace(REFERENCE, adjacency=adjacency)]).epsilon(DELTA)
        assert caught.value.code == "accounting-refused"
    finally:
        accountant._agrees_when_repeated.cache_clear()


@pytest.mark.parametrize(
    ("target", "rate", "rounds"), [(8.0, 0.05, 500), (8.0, 0.3, 40), (1.0, 0.1, 20), (0.2, 1.0, 5)]
)
def test_calibration_is_tight_and_never_over(target: float, rate: float, rounds: int) -> None:
    sigma = noise_multiplier_for(target, DELTA, rate, rounds)
    assert epsilon([MechanismEvent(rate, sigma, rounds)], DELTA) <= target
    assert epsilon([MechanismEvent(rate, sigma - 0.002, rounds)], DELTA) > target


def test_calibration_refuses_the_impossible() -> None:
    with pytest.raises(AccountingError):
        noise_multiplier_for(1e-6, 1e-12, 1.0, 100_000)
    with pytest.raises(AccountingError):
        noise_multiplier_for(0.0, DELTA, 0.1, 10)


@pytest.mark.parametrize(
    "fields",
    [
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"sampling_rate": math.nan},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.inf},
        {"count": 0},
        {"adjacency": "replace_two"},
    ],
)
def test_impossible_mechanisms_are_refused(fields: dict[str, object]) -> None:
    good: dict[str, object] = {"sampling_rate": 0.1, "noise_multiplier": 1.0}
    with pytest.raises(AccountingError):
        MechanismEvent(**{**good, **fields})  # type: ignore[arg-type]


def test_impossible_delta_and_sites_are_refused() -> None:
    for delta in (0.0, 1.0, math.nan):
        with pytest.raises(AccountingError):
            epsilon([REFERENCE], delta)
    with pytest.raises(AccountingError):
        epsilon_sec([REFERENCE], DELTA, 0)


def test_a_call_is_fast_enough_to_hold_a_lock_during_it() -> None:
    events = [MechanismEvent(0.047, 1.07, 499), MechanismEvent(0.3, 2.2, 40)]
    best = math.inf
    for repeat in range(3):
        start = time.process_time()
        epsilon([*events, MechanismEvent(0.1, 1.5 + repeat / 10)], DELTA)
        best = min(best, time.process_time() - start)
    assert best < 0.5


def test_versions_are_on_record() -> None:
    assert accountant_versions()["dp-accounting"].count(".") >= 1
