"""The integer mechanism: exact sensitivity, exact noise, and an ε that covers it."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats

from privacy.accountant import REPLACE_ONE, MechanismEvent, epsilon
from privacy.discrete_gaussian import sample
from privacy.errors import AccountingError, PlanError
from privacy.integer_mechanism import IntegerMechanism
from privacy.random_source import DeterministicRandomSource, SystemRandomSource

torch.set_num_threads(1)

DELTA = 1e-6
any_gradient = npst.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))


def seeded(seed: bytes) -> DeterministicRandomSource:
    return DeterministicRandomSource(seed, for_tests=True)


@settings(max_examples=200, deadline=None)
@given(gradient=any_gradient, clipping_norm=st.floats(1e-6, 1e5), units=st.integers(64, 1 << 24))
def test_no_subject_has_an_integer_norm_above_units(
    gradient: np.ndarray, clipping_norm: float, units: int
) -> None:
    mechanism = IntegerMechanism(clipping_norm, units, 1.0, len(gradient))
    sum_D = mechanism.clip_and_sum(torch.from_numpy(gradient)[None])
    assert sum_D.dtype == torch.int64
    assert sum(int(value) ** 2 for value in sum_D) <= units**2


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 3000))
def test_rounding_up_everywhere_is_clipped_again(seed: int, size: int) -> None:
    """Norm exactly C in many small numbers, where rounding to nearest alone exceeds units."""
    gradient_D = torch.from_numpy(np.random.default_rng(seed).normal(size=size))
    mechanism = IntegerMechanism(float(gradient_D.norm()), 64, 1.0, size)
    sum_D = mechanism.clip_and_sum(gradient_D[None])
    assert int((sum_D * sum_D).sum()) <= 64**2
    assert int(mechanism.clip_and_sum(torch.full((1, size), 0.6).double()).square().sum()) <= 64**2


def test_subjects_add_up_exactly_and_decode_close_to_their_gradients() -> None:
    gradients_SD = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    mechanism = IntegerMechanism(2.0, 1 << 20, 1.0, 300)
    whole_D = mechanism.clip_and_sum(gradients_SD)
    parts_D = [mechanism.clip_and_sum(row_D[None]) for row_D in gradients_SD]
    assert torch.equal(whole_D, torch.stack(parts_D).sum(0))
    wanted_D = (gradients_SD * 2.0 / gradients_SD.norm(dim=1, keepdim=True)).double().sum(0)
    torch.testing.assert_close(mechanism.decode(whole_D), wanted_D, atol=2e-5, rtol=0)


@pytest.mark.parametrize("variance", [1, 3, 25, 10_000])
def test_samples_follow_the_discrete_gaussian(variance: int) -> None:
    count = 20_000
    values = sample(count, variance, seeded(f"law {variance}".encode()))
    reach = 5 * math.isqrt(variance) + 5
    support = np.arange(-reach, reach + 1)
    mass = np.exp(-(support.astype(float) ** 2) / (2 * variance))
    mass /= mass.sum()
    edges = np.unique(np.quantile(values, np.linspace(0.02, 0.98, 25)).astype(int))
    bins = np.searchsorted(edges, values)
    expected = np.bincount(np.searchsorted(edges, support), mass, len(edges) + 1) * count
    observed = np.bincount(bins, minlength=len(edges) + 1)
    assert stats.chisquare(observed, expected * observed.sum() / expected.sum()).pvalue > 1e-4
    assert abs(values.mean()) < 4 * math.sqrt(variance / count)


def test_samples_are_drawn_anew_and_repeat_only_with_the_source() -> None:
    assert np.array_equal(sample(50, 10_000, seeded(b"a")), sample(50, 10_000, seeded(b"a")))
    assert not np.array_equal(sample(50, 10_000, seeded(b"a")), sample(50, 10_000, seeded(b"b")))
    source = SystemRandomSource()
    first, second = sample(2000, 1 << 40, source), sample(2000, 1 << 40, source)
    assert abs(np.corrcoef(first, second)[0, 1]) < 6.2 / math.sqrt(2000)
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 6.2 / math.sqrt(2000)


def test_the_noise_has_the_plans_size_and_an_empty_lot_gets_it_too() -> None:
    mechanism = IntegerMechanism(0.5, 1 << 16, 1.031, 5000)
    empty_D = mechanism.clip_and_sum(torch.empty(0, 5000))
    noise_D = mechanism.decode(mechanism.privatise(empty_D, seeded(b"size"))) / 0.5
    assert float(noise_D.std()) == pytest.approx(1.031, rel=4 / math.sqrt(2 * 5000))
    assert stats.kstest(noise_D.numpy() / 1.031, "norm").pvalue > 1e-4


@pytest.mark.parametrize("deviation", [4, 8, 16])
def test_the_divergence_from_rounded_gaussians_is_what_is_claimed(deviation: int) -> None:
    """One coordinate's Kullback-Leibler divergence, to sixty digits."""
    with mpmath.workdps(60):
        variance = mpmath.mpf(deviation) ** 2
        rounded = mpmath.sqrt(2 * (variance - mpmath.mpf(1) / 12))
        reach = range(-14 * deviation, 14 * deviation + 1)
        masses = [mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * variance)) for k in reach]
        total = mpmath.fsum(masses)

        def upper(at: mpmath.mpf) -> mpmath.mpf:
            return mpmath.erfc(at / rounded) / 2

        half = mpmath.mpf(1) / 2
        other = [upper(abs(k) - half) - upper(abs(k) + half) for k in reach]
        divergence = mpmath.fsum(
            p / total * mpmath.log(p / total / q) for p, q in zip(masses, other, strict=True)
        )
        scaled = float(divergence * variance**4)
    assert 1.3e-6 < scaled < 3e-6


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_epsilon_of_one_number_is_dp_accountings_discrete_gaussian(rate: float) -> None:
    mechanism = IntegerMechanism(1.0, 100, 2.0, 1)
    peer = privacy_loss_distribution.from_discrete_gaussian_mechanism(
        200.0,
        sensitivity=100,
        sampling_prob=rate,
        value_discretization_interval=1e-3,
        use_connect_dots=True,
    ).self_compose(20)
    assert mechanism.epsilon(rate, 20, DELTA) == pytest.approx(
        peer.get_epsilon_for_delta(DELTA), rel=2e-3
    )


def test_epsilon_is_never_below_the_gaussians_and_close_to_it() -> None:
    mechanism = IntegerMechanism(1.0, 1 << 16, 1.031, 3584)
    gaussian = MechanismEvent(0.05, 1.031, 500)
    assert mechanism.epsilon(0.05, 500, DELTA) == pytest.approx(8.007, abs=0.01)
    assert mechanism.epsilon(0.05, 500, DELTA) >= epsilon([gaussian], DELTA) * (1 - 1e-6)
    assert mechanism.epsilon(0.05, 500, DELTA, honest_sites=2) == pytest.approx(4.46, abs=0.01)
    assert mechanism.epsilon(0.05, 500, DELTA, REPLACE_ONE) > 12


@pytest.mark.parametrize("sites", [1, 3])
def test_the_accounted_gaussian_is_the_one_whose_rounding_has_our_variance(sites: int) -> None:
    mechanism = IntegerMechanism(1.0, 64, 1.0, 5)
    assert mechanism.variance == 64**2
    accounted = mechanism.event(0.1, honest_sites=sites).noise_multiplier * 64
    assert accounted**2 <= sites * 64**2 - 1 / 12
    assert accounted**2 == pytest.approx(sites * 64**2 - 1 / 12, rel=1e-12)


def test_noise_too_coarse_for_its_delta_is_refused() -> None:
    with pytest.raises(AccountingError):
        IntegerMechanism(1.0, 64, 1.0, 10**6).epsilon(1.0, 500, 1e-9)


def test_sums_that_could_wrap_are_refused_at_start() -> None:
    mechanism = IntegerMechanism(1.0, 1 << 16, 1.0, 3584)
    mechanism.require_no_wrap(1 << 32, sites=3, subjects_per_site=2000)
    with pytest.raises(PlanError, match=r"2\*\*32"):
        mechanism.require_no_wrap(1 << 31, sites=3, subjects_per_site=8000)
    worst_D = torch.full((1, 1), 3 * 2000 * (1 << 16))
    noisy = abs(int(worst_D)) + 3 * int(abs(sample(100, mechanism.variance, seeded(b"w"))).max())
    assert noisy < 1 << 31


def test_sums_modulo_the_modulus_are_the_sums() -> None:
    mechanism = IntegerMechanism(1.0, 1 << 12, 1.0, 50)
    mechanism.require_no_wrap(modulus := 1 << 20, sites=3, subjects_per_site=20)
    gradients_SD = torch.randn(20, 50, generator=torch.Generator().manual_seed(2))
    sums = [
        mechanism.privatise(mechanism.clip_and_sum(gradients_SD), seeded(bytes([site])))
        for site in range(3)
    ]
    wrapped_D = torch.stack([sum_D % modulus for sum_D in sums]).sum(0) % modulus
    read_D = torch.where(wrapped_D >= modulus // 2, wrapped_D - modulus, wrapped_D)
    assert torch.equal(read_D, torch.stack(sums).sum(0))


@pytest.mark.parametrize(
    "fields",
    [(0.0, 100, 1.0, 5), (1.0, 0, 1.0, 5), (1.0, 1 << 25, 1.0, 5), (1.0, 100, 0.0, 5),
     (1.0, 100, 1.0, 0), (1.0, 8, 1.0, 5), (math.nan, 100, 1.0, 5)],
)  # fmt: skip
def test_impossible_constants_are_refused(fields: tuple[float, int, float, int]) -> None:
    with pytest.raises(PlanError):
        IntegerMechanism(*fields)


def test_a_sum_of_another_kind_is_refused() -> None:
    mechanism = IntegerMechanism(1.0, 100, 1.0, 5)
    for wrong_D in (torch.zeros(6, dtype=torch.int64), torch.zeros(5)):
        with pytest.raises(PlanError):
            mechanism.privatise(wrong_D, SystemRandomSource())
    for variance in (0, 1 << 112):
        with pytest.raises(ValueError, match="variance"):
            sample(1, variance, SystemRandomSource())
