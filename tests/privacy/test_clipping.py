"""Clipping by groups and adaptive clipping: what one subject can move, and what is accounted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from privacy.clipping import AdaptiveClipping, Group, clip_groups_and_sum, group_sensitivity
from privacy.errors import AccountingError, PlanError
from privacy.mechanism import clip_and_sum
from privacy.random_source import DeterministicRandomSource

torch.set_num_threads(1)

GROUPS = (Group(0, 2, 0.5), Group(2, 5, 2.0), Group(5, 6, 0.1))


@settings(max_examples=100, deadline=None)
@given(
    gradients=npst.arrays(np.float32, (4, 6), elements=st.floats(width=32)),
    subject=st.integers(0, 3),
)
def test_a_subject_moves_the_sum_by_at_most_the_groups_together(
    gradients: np.ndarray, subject: int
) -> None:
    gradients_SD = torch.from_numpy(gradients)
    others_SD = torch.cat([gradients_SD[:subject], gradients_SD[subject + 1 :]])
    moved_D = clip_groups_and_sum(gradients_SD, GROUPS)[0]
    moved_D = moved_D - clip_groups_and_sum(others_SD, GROUPS)[0]
    assert float(moved_D.norm()) <= group_sensitivity(GROUPS) * (1 + 1e-12)
    for group in GROUPS:
        part = float(moved_D[group.start : group.stop].norm())
        assert part <= group.clipping_norm * (1 + 1e-12)


def test_the_bound_is_reached_and_one_group_is_flat_clipping() -> None:
    gradients_SD = torch.full((1, 6), 1e6)
    sum_D, norms_SG = clip_groups_and_sum(gradients_SD, GROUPS)
    assert float(sum_D.norm()) == pytest.approx(math.sqrt(0.5**2 + 2.0**2 + 0.1**2), rel=1e-12)
    assert norms_SG.shape == (1, 3)
    flat_D, norms_S = clip_and_sum(gradients_SD, 0.7)
    same_D, norms_S1 = clip_groups_and_sum(gradients_SD, (Group(0, 6, 0.7),))
    assert torch.equal(flat_D, same_D)
    assert torch.equal(norms_S, norms_S1[:, 0])


@pytest.mark.parametrize(
    "groups",
    [
        (),
        (Group(0, 5, 1.0),),
        (Group(0, 3, 1.0), Group(2, 6, 1.0)),
        (Group(0, 3, 1.0), Group(3, 3, 1.0), Group(3, 6, 1.0)),
        (Group(0, 6, 0.0),),
        (Group(0, 6, math.nan),),
    ],
)
def test_groups_with_gaps_overlaps_or_no_norm_are_refused(groups: tuple[Group, ...]) -> None:
    with pytest.raises(PlanError):
        clip_groups_and_sum(torch.zeros(2, 6), groups)


def adaptive(**changes: float) -> AdaptiveClipping:
    fields = {
        "clipping_norm": 1.0,
        "target_quantile": 0.5,
        "count_noise": 10.0,
        "expected_lot": 200.0,
    }
    return AdaptiveClipping(**{**fields, **changes})


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.2, 30.0])
def test_the_norm_finds_the_quantile(quantile: float, start: float) -> None:
    source = DeterministicRandomSource(b"quantile", for_tests=True)
    norms = np.random.default_rng(3).lognormal(1.0, 0.7, size=(120, 200))
    clipping = adaptive(target_quantile=quantile, clipping_norm=start)
    tail = []
    for norms_S in torch.from_numpy(norms):
        clipping = clipping.after_round(norms_S, source)
        tail.append(clipping.clipping_norm)
    found = float(np.mean(np.array(tail[-40:])[:, None] >= norms[-40:]))
    assert found == pytest.approx(quantile, abs=0.04)


def test_sum_and_count_together_cost_what_is_accounted() -> None:
    """A unit of the joint mechanism: the squared shift of both, in units of their noises."""
    clipping = adaptive(count_noise=3.0)
    raised = clipping.sum_noise_multiplier(1.2)
    assert raised > 1.2
    shift = math.hypot(1 / raised, 0.5 / clipping.count_noise)
    assert shift == pytest.approx(1 / 1.2, rel=1e-12)


@pytest.mark.parametrize("multiplier", [6.0, 6.5, 0.0])
def test_a_count_that_costs_everything_is_refused(multiplier: float) -> None:
    with pytest.raises(AccountingError):
        adaptive(count_noise=3.0).sum_noise_multiplier(multiplier)


class _Silent:
    """A source whose Gaussian values are all one number."""

    name = "fixed"

    def __init__(self, value: float) -> None:
        self._value = value

    def normal(self, size: int) -> torch.Tensor:
        return torch.full((size,), self._value, dtype=torch.float64)

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        raise AssertionError("no sampling here")


@settings(max_examples=50, deadline=None)
@given(norms=st.lists(st.floats(0, 10) | st.just(math.nan), max_size=30), one=st.floats(0, 10))
def test_one_subject_moves_the_count_by_half(norms: list[float], one: float) -> None:
    """Read back from the factor, with noise that keeps the fraction off its ends."""
    clipping = adaptive(learning_rate=1.0)

    def told(values: list[float]) -> float:
        norms_S = torch.tensor(values, dtype=torch.float64)
        after = clipping.after_round(norms_S, _Silent(0.0)).clipping_norm
        return (-math.log(after) + clipping.target_quantile) * clipping.expected_lot

    assert abs(told([*norms, one]) - told(norms)) == pytest.approx(0.5, abs=1e-9)


def test_the_count_is_noised_and_no_noise_can_move_the_norm_far() -> None:
    norms_S = torch.ones(100, dtype=torch.float64)
    told = {adaptive().after_round(norms_S, _Silent(z)).clipping_norm for z in (-0.5, 0.0, 0.5)}
    assert len(told) == 3
    for z in (-1e9, 1e9):
        factor = adaptive().after_round(norms_S, _Silent(z)).clipping_norm
        assert math.exp(-0.1) * 0.999 <= factor <= math.exp(0.1) * 1.001


@pytest.mark.parametrize(
    "changes",
    [{"clipping_norm": 0.0}, {"target_quantile": 1.0}, {"count_noise": 0.0},
     {"expected_lot": math.inf}, {"learning_rate": -1.0}],
)  # fmt: skip
def test_impossible_constants_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(PlanError):
        adaptive(**changes)
