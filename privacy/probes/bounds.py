"""Limits that honest randomness passes with a stated chance, exact or proven, never asymptotic.

Every check of a probe raises a false alarm with probability at most `ALPHA`. That is also what
stopping costs in privacy: withholding an update because of its noise changes which noise is
released, and so adds at most the chance of stopping, below 1e-12 a round, to δ.

Shapes: N values.
"""

from __future__ import annotations

import math

import torch

ALPHA = 1e-14
_LOG = math.log(2 / ALPHA)  # for two-sided checks: half of ALPHA on each side


def gaussian_limit() -> float:
    """Most that |Z| of a standard Gaussian reaches (Chernoff: P(|Z| > t) ≤ 2 exp(-t²/2))."""
    return math.sqrt(2 * _LOG)


def chi_square_holds(value: float, degrees: int) -> bool:
    """Whether a χ² value of `degrees` degrees of freedom lies in its central 1 - ALPHA (exact)."""
    return chi_square_tail(value, degrees, lower=True) > ALPHA / 2 and (
        chi_square_tail(value, degrees, lower=False) > ALPHA / 2
    )


def chi_square_tail(value: float, degrees: int, *, lower: bool) -> float:
    """P(χ² ≤ value), or P(χ² ≥ value)."""
    half = torch.tensor([degrees / 2, max(value, 0.0) / 2], dtype=torch.float64)
    tail = torch.special.gammainc if lower else torch.special.gammaincc
    return float(tail(half[0], half[1]))


def quadratic_limit(frobenius: float, spectral: float) -> float:
    """Most that |zᵀAz - tr A| reaches for Gaussian z: 2‖A‖_F·√x + 2‖A‖·x, x = log(2/ALPHA).

    From the cumulants of a Gaussian quadratic form (Laurent and Massart 2000, lemma 1, which holds
    for eigenvalues of either sign since -log(1-u)/2 - u/2 ≤ u²/(4(1-|u|))).
    """
    return 2 * frobenius * math.sqrt(_LOG) + 2 * spectral * _LOG


def binomial_holds(successes: int, trials: int, rate: float) -> bool:
    """Whether a binomial count is credible: n·KL(k/n ‖ p) ≤ log(2/ALPHA) (Chernoff, Hoeffding)."""
    if not 0 <= successes <= trials:
        return False
    if not 0 < rate < 1:
        return successes == (trials if rate >= 1 else 0)
    seen = successes / trials if trials else rate
    divergence = _term(seen, rate) + _term(1 - seen, 1 - rate)
    return trials * divergence <= _LOG


def distribution_limit(count: int) -> float:
    """Most that the empirical distribution of `count` values departs from the true one.

    Dvoretzky-Kiefer-Wolfowitz with Massart's constant (1990): P(D > t) ≤ 2 exp(-2nt²).
    """
    return math.sqrt(_LOG / (2 * count))


def _term(seen: float, expected: float) -> float:
    return seen * math.log(seen / expected) if seen > 0 else 0.0
