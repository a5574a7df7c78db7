"""Privacy loss distributions of the subsampled Gaussian mechanism, on grids of several widths.

The record of the accountant (Koskela et al. 2020, arXiv:1906.03049), discretised pessimistically
by connect-the-dots (Doroshenko et al. 2022, arXiv:2207.04380). dp-accounting makes, composes and
reads the distributions; this file chooses their grids and evaluates many points at once where
dp-accounting loops in Python.

A round's grid is a power of two near a thirtieth of the spread of its own privacy loss, which
costs about 1e-4 of ε. Rounds on one grid are composed as they come, so that another one costs one
convolution; the few grids are joined, finest first, when ε is asked for.

Shapes: L losses on a grid.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from dp_accounting.pld import pld_pmf
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

_Floats = npt.NDArray[np.float64]
_SPREAD_PER_INTERVAL = 30
_FINEST, _COARSEST = 1e-7, 1e-2
_LOG_EXACT_ASINH = 20.0  # beyond it asinh(y) is log(2y) to the last digit


def interval_of(sampling_rate: float, noise_multiplier: float, *, replace_one: bool) -> float:
    """Grid width for one mechanism, a power of two, in units of privacy loss."""
    spread = _loss_spread(sampling_rate, noise_multiplier) * (2 if replace_one else 1)
    fine = min(max(spread / _SPREAD_PER_INTERVAL, _FINEST), _COARSEST)
    return float(2.0 ** math.floor(math.log2(fine)))


@lru_cache(maxsize=64)
def distribution(
    sampling_rate: float, noise_multiplier: float, interval: float, *, replace_one: bool
) -> Any:
    """PrivacyLossDistribution of one run of N(0, σ²) on a Poisson(q) sum of sensitivity 1.

    Under replace-one adjacency the dominating pair is (1-q)·N(0) + q·N(-1) against
    (1-q)·N(0) + q·N(1): two subjects pulling in opposite directions (Schuchardt et al. 2024,
    arXiv:2403.04867; dp-accounting's AdjacencyType.REPLACE).
    """

    def pmf(adjacency: AdjacencyType) -> Any:
        return _pmf(sampling_rate, noise_multiplier, interval, adjacency)

    if replace_one:
        return PrivacyLossDistribution(pmf(AdjacencyType.REPLACE))
    if sampling_rate == 1:  # adding and removing look alike
        return PrivacyLossDistribution(pmf(AdjacencyType.REMOVE))
    return PrivacyLossDistribution(pmf(AdjacencyType.REMOVE), pmf(AdjacencyType.ADD))


class Composed:
    """The composition of any number of distributions on any grids."""

    def __init__(self) -> None:
        self._by_interval: dict[float, Any] = {}

    def add(self, single: Any, interval: float, count: int) -> None:
        """Compose with `count` runs of `single`, a distribution on the grid of `interval`."""
        more = single.self_compose(count) if count > 1 else single
        earlier = self._by_interval.get(interval)
        self._by_interval[interval] = more if earlier is None else earlier.compose(more)

    def epsilon(self, delta: float) -> float:
        """ε at `delta`, an upper bound."""
        finest, *coarser = sorted(self._by_interval)
        whole = self._by_interval[finest]
        for interval in coarser:
            whole = _coarsened(whole, interval).compose(self._by_interval[interval])
        return float(whole.get_epsilon_for_delta(delta))


def _pmf(q: float, sigma: float, interval: float, adjacency: AdjacencyType) -> Any:
    loss = GaussianPrivacyLoss(sigma, sampling_prob=q, adjacency_type=adjacency)
    bounds = loss.connect_dots_bounds()
    lowest = math.floor(bounds.epsilon_lower / interval)
    highest = math.ceil(bounds.epsilon_upper / interval)
    epsilons_L = np.arange(lowest, highest + 1) * interval
    x_L = _cutoffs(epsilons_L, q, sigma, adjacency)
    # The hockey-stick divergence: P(x ≤ cutoff) - e^ε Q(x ≤ cutoff), as the loss falls in x.
    deltas_L = loss.mu_upper_cdf(x_L) - np.exp(epsilons_L + loss.mu_lower_log_cdf(x_L))
    made = pld_pmf.create_pmf_pessimistic_connect_dots_fixed_gap(
        interval, lowest, highest, np.clip(deltas_L, 0, 1)
    )
    # Sparse and dense distributions cannot be composed with one another.
    return made.to_dense_pmf()


def _cutoffs(epsilons_L: _Floats, q: float, sigma: float, adjacency: AdjacencyType) -> _Floats:
    """Largest x at which the privacy loss is still ε; ±∞ where it is so everywhere or nowhere."""
    if adjacency is AdjacencyType.REPLACE:
        return sigma**2 * (_replace_asinh(epsilons_L, q, sigma) - epsilons_L / 2)
    # Loss without subsampling at which the subsampled loss is ε: log(1 + (e^±ε - 1)/q).
    sign = 1.0 if adjacency is AdjacencyType.REMOVE else -1.0
    with np.errstate(divide="ignore", invalid="ignore"):
        inner_L = sign * epsilons_L + np.log1p(-(1 - q) * np.exp(-sign * epsilons_L)) - math.log(q)
    unsampled_L = sign * np.where(np.isnan(inner_L), -np.inf, inner_L)
    return sign * -0.5 - sigma**2 * unsampled_L


def _replace_asinh(epsilons_L: _Floats, q: float, sigma: float) -> _Floats:
    # asinh(-sinh(ε/2)·e^(1/2σ²)·(1-q)/q), through logarithms as the product overflows.
    if q == 1:
        return np.zeros_like(epsilons_L)
    size_L = np.abs(epsilons_L)
    with np.errstate(divide="ignore"):
        log_sinh_L = size_L / 2 + np.log1p(-np.exp(-size_L)) - math.log(2)
    log_y_L = log_sinh_L + 0.5 / sigma**2 + math.log1p(-q) - math.log(q)
    near_L = np.arcsinh(np.exp(np.minimum(log_y_L, _LOG_EXACT_ASINH)))
    far_L = log_y_L + math.log(2)
    return -np.sign(epsilons_L) * np.where(log_y_L < _LOG_EXACT_ASINH, near_L, far_L)


def _coarsened(fine: Any, interval: float) -> Any:
    remove = _coarsened_pmf(fine._pmf_remove, interval)
    add = None if fine._symmetric else _coarsened_pmf(fine._pmf_add, interval)
    return PrivacyLossDistribution(remove, add)


def _coarsened_pmf(fine: Any, interval: float) -> Any:
    """The mass of each loss shared between its neighbours on a coarser grid, never less private.

    The shares keep Σp and Σp·e^(-loss), so every hockey-stick divergence, convex in e^(-loss),
    stays or grows: connect-the-dots once more.
    """
    ratio = round(interval / fine._discretization)
    index_L = fine._lower_loss + np.arange(fine.size)
    below_L = index_L // ratio
    rest_L = (index_L - below_L * ratio) * fine._discretization
    up_L = fine._probs * np.expm1(-rest_L) / math.expm1(-interval)
    place_L = below_L - below_L[0]
    size = int(place_L[-1]) + 2
    mass = np.bincount(place_L, fine._probs - up_L, size)
    mass += np.bincount(place_L + 1, up_L, size)
    return pld_pmf.DensePLDPmf(interval, int(below_L[0]), mass, fine._infinity_mass, True)


def _loss_spread(sampling_rate: float, noise_multiplier: float) -> float:
    # Standard deviation of the loss: q·√χ² to first order in q, and 1/σ without subsampling.
    precision = noise_multiplier**-2
    unsampled = math.sqrt(precision)
    if precision > 100:
        return unsampled
    return min(sampling_rate * math.sqrt(math.expm1(precision)), unsampled)
