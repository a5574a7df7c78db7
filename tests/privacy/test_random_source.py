"""The random source: right distributions, fresh keys, no seed outside tests.

The deterministic source's outcomes are constants, so its thresholds never flake; the system
source is held to bounds that chance passes with probability above 1 − 1e-9.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from privacy.errors import AuricleError
from privacy.random_source import DeterministicRandomSource, SystemRandomSource

SIZE = 200_000


def seeded(seed: bytes = b"noise") -> DeterministicRandomSource:
    return DeterministicRandomSource(seed, for_tests=True)


@pytest.mark.parametrize("source", [seeded(), SystemRandomSource()], ids=lambda s: s.name)
def test_normal_values_are_standard_gaussian(
    source: DeterministicRandomSource | SystemRandomSource,
) -> None:
    values = source.normal(SIZE)
    assert values.dtype == torch.float64
    assert values.shape == (SIZE,)
    assert stats.kstest(values.numpy(), "norm").pvalue > 1e-9
    assert abs(float(values.mean())) < 6.2 / math.sqrt(SIZE)
    assert abs(float(values.var()) - 1) < 6.2 * math.sqrt(2 / SIZE)
    assert abs(float((values**4).mean()) - 3) < 6.2 * math.sqrt(96 / SIZE)
    tail = float((values.abs() > 3).double().mean())
    assert abs(tail - 0.0026998) < 6.2 * math.sqrt(0.0027 / SIZE)


def test_normal_values_are_independent_within_and_between_calls() -> None:
    source = SystemRandomSource()
    first, second = source.normal(SIZE), source.normal(SIZE)
    bound = 6.2 / math.sqrt(SIZE)
    assert abs(float((first * second).mean())) < bound
    for lag in (1, 2, SIZE // 4, SIZE // 2):
        assert abs(float((first[lag:] * first[:-lag]).mean())) < bound * 2
    # The four values of a sum come from sines and cosines of shared angles: squares must not
    # betray one another either.
    squares = first**2 - 1
    assert abs(float((squares[: SIZE // 2] * squares[SIZE // 2 :]).mean())) < bound * 4


def test_the_system_source_never_repeats_a_key() -> None:
    source = SystemRandomSource()
    assert not torch.equal(source.normal(8), source.normal(8))
    assert not torch.equal(SystemRandomSource().normal(8), SystemRandomSource().normal(8))


def test_the_deterministic_source_repeats_a_run_and_not_a_call() -> None:
    one, two = seeded(), seeded()
    first = one.normal(8)
    assert torch.equal(first, two.normal(8))
    assert not torch.equal(first, one.normal(8))
    assert not torch.equal(first, seeded(b"other").normal(8))


def test_the_deterministic_source_is_refused_outside_tests() -> None:
    with pytest.raises(AuricleError) as caught:
        DeterministicRandomSource(b"seed")
    assert caught.value.code == "random-source-unsafe"


def test_torch_and_numpy_seeds_do_not_reach_the_noise() -> None:
    torch.manual_seed(1)
    first = SystemRandomSource().normal(8)
    torch.manual_seed(1)
    assert not torch.equal(first, SystemRandomSource().normal(8))


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.5, 0.97])
def test_each_subject_is_sampled_at_the_rate_and_alone(rate: float) -> None:
    n, draws = 50, 4000
    source = seeded(str(rate).encode())
    present = torch.zeros(draws, n)
    for draw in range(draws):
        present[draw, source.poisson_sample(n, rate)] = 1
    deviation = math.sqrt(rate * (1 - rate) / draws)
    assert float((present.mean(dim=0) - rate).abs().max()) < 4.5 * deviation
    # Cohort sizes vary as a binomial: a fixed or shuffled batch would have variance zero.
    spread = float(present.sum(dim=1).var()) / (n * rate * (1 - rate))
    assert abs(spread - 1) < 5 * math.sqrt(2 / draws)
    correlation = torch.corrcoef(present.T) - torch.eye(n)
    assert float(correlation.abs().max()) < 5.5 / math.sqrt(draws)


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 300), rate=st.floats(0, 1, exclude_min=True))
def test_samples_are_ascending_indices(n: int, rate: float) -> None:
    sample = SystemRandomSource().poisson_sample(n, rate)
    assert sample == sorted(set(sample))
    assert all(0 <= index < n for index in sample)
    assert all(type(index) is int for index in sample)


def test_sampling_at_the_ends_of_the_rate() -> None:
    source = SystemRandomSource()
    assert source.poisson_sample(1000, 1.0) == list(range(1000))
    assert source.poisson_sample(1000, 1e-30) == []
    assert source.poisson_sample(0, 0.5) == []
    for rate in (0.0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="sampling rate"):
            source.poisson_sample(10, rate)


def test_nothing_drawn_is_nothing() -> None:
    assert SystemRandomSource().normal(0).shape == (0,)
