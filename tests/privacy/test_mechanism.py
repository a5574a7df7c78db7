"""The mechanism: no subject counts for more than C, and the noise is N(0, σ²C²)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from privacy.errors import PlanError
from privacy.mechanism import clip_and_sum, privatise
from privacy.plan import AdapterSpec, TensorSpec
from privacy.random_source import DeterministicRandomSource, SystemRandomSource
from tests.privacy.plans import make_plan

torch.set_num_threads(1)

any_gradients = npst.arrays(
    np.float32,
    npst.array_shapes(min_dims=2, max_dims=2, max_side=7),
    elements=st.floats(width=32),
)
norms = st.floats(1e-6, 1e5)


@settings(max_examples=150, deadline=None)
@given(gradients=any_gradients, clipping_norm=norms, subject=st.integers(0, 6))
def test_a_subject_changes_the_sum_by_at_most_the_clipping_norm(
    gradients: np.ndarray, clipping_norm: float, subject: int
) -> None:
    gradients_SD = torch.from_numpy(gradients)
    subject %= len(gradients_SD)
    others_SD = torch.cat([gradients_SD[:subject], gradients_SD[subject + 1 :]])
    with_D, _ = clip_and_sum(gradients_SD, clipping_norm)
    without_D, _ = clip_and_sum(others_SD, clipping_norm)
    assert torch.isfinite(with_D).all()
    # Float64 sums of at most seven rows round by far less than this.
    assert float((with_D - without_D).norm()) <= clipping_norm * (1 + 1e-12)


@settings(max_examples=60, deadline=None)
@given(gradients=any_gradients, clipping_norm=norms)
def test_microbatches_of_subjects_add_up(gradients: np.ndarray, clipping_norm: float) -> None:
    gradients_SD = torch.from_numpy(gradients)
    whole_D, norms_S = clip_and_sum(gradients_SD, clipping_norm)
    parts = [clip_and_sum(row_SD, clipping_norm) for row_SD in gradients_SD.split(1)]
    torch.testing.assert_close(whole_D, sum(part[0] for part in parts), rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(norms_S, torch.cat([part[1] for part in parts]), equal_nan=True)


def test_small_gradients_pass_and_large_ones_keep_their_direction() -> None:
    gradients_SD = torch.tensor([[0.3, 0.4], [30.0, 40.0], [0.0, 0.0]])
    sum_D, norms_S = clip_and_sum(gradients_SD, 1.0)
    torch.testing.assert_close(sum_D, torch.tensor([0.3 + 0.6, 0.4 + 0.8]).double())
    torch.testing.assert_close(norms_S, torch.tensor([0.5, 50.0, 0.0]).double())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_subject_without_a_finite_gradient_counts_for_nothing(poison: float) -> None:
    gradients_SD = torch.tensor([[0.1, 0.2], [0.3, poison]])
    sum_D, _ = clip_and_sum(gradients_SD, 1.0)
    torch.testing.assert_close(sum_D, torch.tensor([0.1, 0.2], dtype=torch.float32).double())


def test_half_precision_and_wide_gradients_are_clipped_in_float64() -> None:
    gradients_SD = torch.full((2, 200_000), 100.0, dtype=torch.float16)
    sum_D, norms_S = clip_and_sum(gradients_SD, 1.0)
    assert norms_S[0] == pytest.approx(100 * math.sqrt(200_000))
    assert float(sum_D.norm()) == pytest.approx(2.0, rel=1e-12)


def test_an_empty_cohort_still_makes_noise() -> None:
    plan = make_plan()
    sum_D, norms_S = clip_and_sum(torch.empty(0, plan.adapter.size), plan.clipping_norm)
    assert torch.equal(sum_D, torch.zeros(plan.adapter.size, dtype=torch.float64))
    assert norms_S.shape == (0,)
    assert float(privatise(sum_D, plan, SystemRandomSource()).abs().min()) > 0


SIZE = 100_000
WIDE = AdapterSpec("core", 2, 1.0, ("q_proj",), (), (TensorSpec("core", (SIZE,)),), "5a" * 32)


@pytest.mark.parametrize(("sigma", "clipping_norm"), [(1.031, 0.5), (4.0, 2.0), (0.3, 10.0)])
def test_the_noise_is_gaussian_of_the_plans_size(sigma: float, clipping_norm: float) -> None:
    plan = make_plan(adapter=WIDE, noise_multiplier=sigma, clipping_norm=clipping_norm)
    sum_D = torch.linspace(-3, 3, SIZE, dtype=torch.float64)
    source = DeterministicRandomSource(f"{sigma}".encode(), for_tests=True)
    noisy_D = privatise(sum_D, plan, source)
    assert noisy_D.dtype == torch.float32
    noise_D = (noisy_D.double() - sum_D) / (sigma * clipping_norm)
    assert stats.kstest(noise_D.numpy(), "norm").pvalue > 1e-4
    assert float(noise_D.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * SIZE))
    assert abs(float(noise_D.mean())) < 4 / math.sqrt(SIZE)


def test_noise_is_drawn_anew_each_time_and_apart_from_the_data() -> None:
    plan = make_plan(adapter=WIDE)
    zeros_D, ones_D = torch.zeros(SIZE).double(), torch.ones(SIZE).double()
    source = SystemRandomSource()
    first_D = privatise(zeros_D, plan, source).double()
    second_D = privatise(ones_D, plan, source).double() - 1
    correlation = float(torch.corrcoef(torch.stack([first_D, second_D]))[0, 1])
    assert abs(correlation) < 6.2 / math.sqrt(SIZE)


def test_mode_none_adds_nothing() -> None:
    plan = make_plan(privacy_mode="none", noise_multiplier=0)
    sum_D = torch.arange(plan.adapter.size, dtype=torch.float64)
    assert torch.equal(privatise(sum_D, plan, SystemRandomSource()), sum_D.float())


def test_an_update_of_another_size_is_refused() -> None:
    plan = make_plan()
    with pytest.raises(PlanError):
        privatise(torch.zeros(plan.adapter.size + 1), plan, SystemRandomSource())
