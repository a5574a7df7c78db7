"""Rényi divergences of the subsampled Gaussian mechanism, and their conversion to (ε, δ).

The accountant's second opinion, written apart from the loss distributions, and the currency of the
Rényi filter. Orders are integers, for which adding or removing a subject has a closed form.

Shapes: A orders, K terms of a sum, X points of an integral.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from dp_accounting.rdp import rdp_privacy_accountant

_Floats = npt.NDArray[np.float64]
ORDERS = (*range(2, 65), *range(72, 129, 8), 192, 256, 384, 512, 768, 1024, 2048, 4096)
_QUADRATURE_ORDERS = 128  # the integrals of higher orders lie far out and add nothing
_POINTS_PER_SIGMA = 16
_SIGMAS_BEYOND = 12
_LOG_FACTORIAL = np.array([math.lgamma(k + 1) for k in range(max(ORDERS) + 1)])


@lru_cache(maxsize=4096)
def divergences(sampling_rate: float, noise_multiplier: float, replace_one: bool) -> _Floats:
    """Rényi divergence [A] of one run at each of ORDERS, in nats; ∞ where none is computed."""
    if replace_one:
        values = [_replaced(order, sampling_rate, noise_multiplier) for order in ORDERS]
    else:
        values = [_added_or_removed(order, sampling_rate, noise_multiplier) for order in ORDERS]
    divergences_A = np.array(values)
    divergences_A.flags.writeable = False  # shared by every caller
    return divergences_A


def epsilon_of(divergences_A: _Floats, delta: float) -> float:
    """ε at `delta` of a mechanism with these divergences (Canonne et al. 2020, prop. 12)."""
    return float(rdp_privacy_accountant.compute_epsilon(ORDERS, divergences_A, delta)[0])


def _added_or_removed(order: int, q: float, sigma: float) -> float:
    """Mironov et al. 2019, arXiv:1908.10530, section 3.3: log Σ_k B(k; α, q) e^(k(k-1)/2σ²)."""
    if q == 1:
        return order / (2 * sigma**2)
    k_K = np.arange(order + 1)
    log_choose_K = _LOG_FACTORIAL[order] - _LOG_FACTORIAL[k_K] - _LOG_FACTORIAL[order - k_K]
    log_terms_K = log_choose_K + k_K * math.log(q) + (order - k_K) * math.log1p(-q)
    log_terms_K += k_K * (k_K - 1) / (2 * sigma**2)
    return max(0.0, _log_sum(log_terms_K) / (order - 1))


def _replaced(order: int, q: float, sigma: float) -> float:
    """D_α((1-q)·N(0) + q·N(-1) ‖ (1-q)·N(0) + q·N(1)), by the trapezoidal rule.

    The integrand is analytic with tails like a Gaussian's of σ: the rule converges geometrically
    in points per σ. Its mass lies between the means of its extreme terms, 1 - 2α and 1.
    """
    if q == 1:
        return 2 * order / sigma**2
    if order > _QUADRATURE_ORDERS:
        return math.inf
    low, high = 1 - 2 * order - _SIGMAS_BEYOND * sigma, 1 + _SIGMAS_BEYOND * sigma
    points = math.ceil((high - low) / sigma * _POINTS_PER_SIGMA)
    x_X, step = np.linspace(low, high, points, retstep=True)
    stay_X = math.log1p(-q) - x_X**2 / (2 * sigma**2)
    log_p_X = np.logaddexp(stay_X, math.log(q) - (x_X + 1) ** 2 / (2 * sigma**2))
    log_q_X = np.logaddexp(stay_X, math.log(q) - (x_X - 1) ** 2 / (2 * sigma**2))
    log_density = -0.5 * math.log(2 * math.pi) - math.log(sigma)
    log_integral = _log_sum(order * log_p_X + (1 - order) * log_q_X) + math.log(step) + log_density
    return max(0.0, log_integral / (order - 1))


def _log_sum(logs: _Floats) -> float:
    most = float(logs.max())
    return most + math.log(float(np.exp(logs - most).sum()))
