"""Incremental composition and replace-one adjacency, against oracles that share no code."""

from __future__ import annotations

import math
from dataclasses import replace

import dp_accounting
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant, privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

from privacy import renyi
from privacy.accountant import (
    ADD_OR_REMOVE_ONE,
    REPLACE_ONE,
    Composition,
    MechanismEvent,
    epsilon,
    epsilon_sec,
    noise_multiplier_for,
)
from privacy.errors import AccountingError
from privacy.loss_distribution import distribution, interval_of

DELTA = 1e-6
RELATIONS = {
    ADD_OR_REMOVE_ONE: dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
    REPLACE_ONE: dp_accounting.NeighboringRelation.REPLACE_ONE,
}
mechanisms = st.builds(
    MechanismEvent,
    st.sampled_from([0.02, 0.05, 0.3, 1.0]),
    st.sampled_from([0.8, 1.031, 2.7, 9.0]),
    st.integers(1, 12),
)


@settings(max_examples=10, deadline=None)
@given(events=st.lists(mechanisms, min_size=1, max_size=5), data=st.data())
def test_order_and_path_do_not_matter(events: list[MechanismEvent], data: st.DataObject) -> None:
    whole = epsilon(events, DELTA)
    shuffled = data.draw(st.permutations(events))
    one_by_one = Composition()
    for event in shuffled:
        for _ in range(event.count):
            one_by_one.add(replace(event, count=1))
    assert Composition(shuffled).epsilon(DELTA) == pytest.approx(whole, rel=1e-7)
    assert one_by_one.epsilon(DELTA) == pytest.approx(whole, rel=1e-7)


@settings(max_examples=10, deadline=None)
@given(events=st.lists(mechanisms, min_size=2, max_size=5))
def test_asking_on_the_way_changes_nothing_and_never_goes_down(
    events: list[MechanismEvent],
) -> None:
    asked = Composition()
    before = 0.0
    for event in events:
        asked.add(event)
        now = asked.epsilon(DELTA)
        # Joining another grid may cost a ten-thousandth; a round adds more than that.
        assert now >= before * (1 - 1e-4)
        before = now
    assert asked.epsilon(DELTA) == Composition(events).epsilon(DELTA)


@pytest.mark.parametrize("adjacency", [ADD_OR_REMOVE_ONE, REPLACE_ONE])
def test_many_grids_agree_with_dp_accounting_on_one_fine_grid(adjacency: str) -> None:
    events = [
        MechanismEvent(0.3, 2.2, 5, adjacency),  # on the coarsest of three grids
        MechanismEvent(0.02, 1.3, 60, adjacency),
        MechanismEvent(0.3, 9.0, 10, adjacency),
    ]
    assert len({_interval(event) for event in events}) == 3
    peer = PLDAccountant(RELATIONS[adjacency], value_discretization_interval=1e-4)
    for event in events:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        peer.compose(
            dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian), event.count
        )
    assert epsilon(events, DELTA) == pytest.approx(peer.get_epsilon(DELTA), rel=5e-4)


@settings(max_examples=10, deadline=None)
@given(
    rate=st.sampled_from([0.01, 0.05, 0.3, 0.9, 1.0]),
    sigma=st.floats(0.4, 30),
    adjacency=st.sampled_from([ADD_OR_REMOVE_ONE, REPLACE_ONE]),
)
def test_one_round_is_dp_accountings_own_distribution(
    rate: float, sigma: float, adjacency: str
) -> None:
    interval = interval_of(rate, sigma, replace_one=adjacency == REPLACE_ONE)
    ours = distribution(rate, sigma, interval, replace_one=adjacency == REPLACE_ONE)
    theirs = privacy_loss_distribution.from_gaussian_mechanism(
        sigma,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=RELATIONS[adjacency],
    )
    at = np.linspace(0, 5, 40)
    np.testing.assert_allclose(
        ours.get_delta_for_epsilon(at), theirs.get_delta_for_epsilon(at), atol=1e-11
    )


@pytest.mark.parametrize(("rate", "sigma"), [(0.05, 1.031), (0.3, 2.2), (1e-3, 0.6), (1.0, 20.0)])
def test_renyi_divergences_are_dp_accountings(rate: float, sigma: float) -> None:
    peer = RdpAccountant(renyi.ORDERS)
    gaussian = dp_accounting.GaussianDpEvent(sigma)
    peer.compose(dp_accounting.PoissonSampledDpEvent(rate, gaussian), 7)
    ours = renyi.epsilon_of(7 * renyi.divergences(rate, sigma, False), DELTA)
    assert ours == pytest.approx(peer.get_epsilon(DELTA), rel=1e-9)


@pytest.mark.parametrize(("sigma", "count"), [(2.0, 1), (5.0, 40)])
def test_replace_one_without_subsampling_is_a_gaussian_of_half_the_noise(
    sigma: float, count: int
) -> None:
    mu = 2 * math.sqrt(count) / sigma

    def excess(eps: float) -> float:
        low, high = stats.norm.cdf(mu / 2 - eps / mu), stats.norm.logcdf(-mu / 2 - eps / mu)
        return float(low - math.exp(eps + high) - DELTA)

    exact = optimize.brentq(excess, 0, 200)
    found = epsilon([MechanismEvent(1.0, sigma, count, REPLACE_ONE)], DELTA)
    assert exact <= found <= exact * 1.002


def test_opposite_subjects_are_the_worst_replacement() -> None:
    """Hockey-stick divergences of every pair of planar gradients, by a sum over a fine grid."""
    q, sigma = 0.3, 0.8
    axis = np.arange(-6, 6, 0.05)
    x, y = np.meshgrid(axis, axis)

    def density(at: tuple[float, float]) -> np.ndarray:
        def normal(u: float, v: float) -> np.ndarray:
            return np.exp(-((x - u) ** 2 + (y - v) ** 2) / (2 * sigma**2))

        mixed = (1 - q) * normal(0, 0) + q * normal(*at)
        return mixed * 0.05**2 / (2 * math.pi * sigma**2)

    worst_pair = (density((-1, 0)), density((1, 0)))
    interval = interval_of(q, sigma, replace_one=True)
    claimed = distribution(q, sigma, interval, replace_one=True)
    for eps in (0.0, 0.2, 0.5, 1.0):
        worst = np.maximum(worst_pair[0] - math.exp(eps) * worst_pair[1], 0).sum()
        assert claimed.get_delta_for_epsilon(eps) == pytest.approx(worst, rel=2e-3)
        for turn in (0.0, math.pi / 3, 2 * math.pi / 3, 0.95 * math.pi):
            for near, far in ((1.0, 1.0), (0.5, 1.0), (0.0, 1.0), (1.0, 0.0)):
                one = density((-near, 0))
                other = density((-far * math.cos(turn), -far * math.sin(turn)))
                assert np.maximum(one - math.exp(eps) * other, 0).sum() <= worst * (1 + 1e-9)


@settings(max_examples=10, deadline=None)
@given(event=mechanisms)
def test_replacing_costs_more_than_adding_and_less_than_half_the_noise(
    event: MechanismEvent,
) -> None:
    replaced = epsilon([replace(event, adjacency=REPLACE_ONE)], DELTA)
    assert replaced >= epsilon([event], DELTA) * (1 - 1e-4)
    halved = MechanismEvent(1.0, event.noise_multiplier / 2, event.count)
    assert replaced <= epsilon([halved], DELTA) * (1 + 1e-4)


def test_one_replace_one_event_makes_the_whole_composition_so() -> None:
    added, replaced = MechanismEvent(0.1, 1.2, 30), MechanismEvent(0.3, 2.0, 5, REPLACE_ONE)
    strict = epsilon([replace(added, adjacency=REPLACE_ONE), replaced], DELTA)
    assert epsilon([added, replaced], DELTA) == strict
    for events in ([added, replaced], [replaced, added]):
        assert Composition(events).epsilon(DELTA) == pytest.approx(strict, rel=1e-7)


def test_calibration_under_replace_one_is_tight() -> None:
    sigma = noise_multiplier_for(4.0, DELTA, 0.1, 50, REPLACE_ONE)
    assert epsilon([MechanismEvent(0.1, sigma, 50, REPLACE_ONE)], DELTA) <= 4.0
    assert epsilon([MechanismEvent(0.1, sigma - 0.002, 50, REPLACE_ONE)], DELTA) > 4.0
    with pytest.raises(AccountingError):
        noise_multiplier_for(4.0, DELTA, 0.1, 50, "replace_two")


def test_an_empty_composition_costs_nothing_and_one_without_noise_everything() -> None:
    composition = Composition()
    assert composition.epsilon(DELTA) == 0
    composition.add(MechanismEvent(0.1, 1.0))
    composition.add(MechanismEvent(0.1, 0.0))
    assert composition.epsilon(DELTA) == math.inf
    with pytest.raises(AccountingError):
        composition.epsilon(0.0)


def test_a_secure_sum_is_the_composition_of_summed_events() -> None:
    events = [MechanismEvent(0.1, 1.2, 30), MechanismEvent(0.3, 2.0, 5)]
    composition = Composition(event.summed(3) for event in events)
    assert composition.epsilon(DELTA) == pytest.approx(epsilon_sec(events, DELTA, 3), rel=1e-7)
    with pytest.raises(AccountingError):
        events[0].summed(0)


def _interval(event: MechanismEvent) -> float:
    return interval_of(
        event.sampling_rate,
        event.noise_multiplier,
        replace_one=event.adjacency == REPLACE_ONE,
    )
