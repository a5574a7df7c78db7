"""Empirical privacy of a run from its canaries: a lower bound on ε, and an interval for Gaussians.

A canary is a subject whose gradient the auditor chose. Each is put among the subjects with
probability one half, one run is made, and the auditor guesses from what the run released which
were in. A mechanism with (ε, δ) lets nobody guess well (Steinke, Nasr and Jagielski 2023, "Privacy
auditing with one (1) training run", arXiv:2305.08846, theorem 5.2). So many right guesses prove
that ε is at least so much. Few prove nothing: the bound is about this auditor's attack.

Shapes: M canaries, R guesses.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

from privacy.errors import AuricleError

Scores = NDArray[np.float64]
Included = NDArray[np.bool_]
_SHARES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 1.0)  # of the canaries that are guessed
_MOST_EPSILON = 60.0
_STEPS = 24  # to 4e-6
_FEWEST = 20


class AuditError(AuricleError):
    """An audit was asked for with too few canaries or impossible parameters."""

    code = "audit-invalid"
    exit_code = 9


@dataclasses.dataclass(frozen=True)
class LowerBound:
    """ε is at least `epsilon`, with the confidence asked for, whatever the mechanism is.

    Attributes:
        guesses: R, canaries guessed at: those with the most extreme scores.
        correct: how many of them rightly.
    """

    epsilon: float
    guesses: int
    correct: int


@dataclasses.dataclass(frozen=True)
class Interval:
    """ε of the Gaussian mechanism whose scores these look like, from `low` to `high`.

    Holds only if scores are Gaussian with one variance for canaries in and out. `mu` is the
    distance of the two means in standard deviations (Dong, Roth and Su 2019, arXiv:1905.02383).
    """

    mu: float
    low: float
    high: float


def lower_bound(
    scores_M: Scores, included_M: Included, delta: float, confidence: float = 0.95
) -> LowerBound:
    """The largest ε that the scores refute, over several numbers of guesses.

    The highest scores are guessed to be in and as many of the lowest to be out. Every number of
    guesses gets an equal part of the allowed error, so that taking the best is honest.

    Args:
        scores_M: higher where the auditor believes that a canary was in.
        included_M: whether it was.
        delta: δ of the claim.
        confidence: that the bound holds.

    Raises AuditError for fewer than 20 canaries or scores that are not finite.
    """
    _check(scores_M, included_M, delta)
    order_M = np.argsort(scores_M, kind="stable")
    error = (1 - confidence) / len(_SHARES)
    best = LowerBound(0.0, 0, 0)
    for share in _SHARES:
        half = max(1, int(len(scores_M) * share / 2))
        correct = int(included_M[order_M[-half:]].sum() + (~included_M[order_M[:half]]).sum())
        found = _refuted(len(scores_M), 2 * half, correct, delta, error)
        if found > best.epsilon or not best.guesses:
            best = LowerBound(found, 2 * half, correct)
    return best


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Most that P(at least `correct` right guesses) is under (ε, δ): theorem 5.2.

    P(Binomial(R, e^ε/(1+e^ε)) ≥ v) + 2Mδ·max_i P(v > Binomial ≥ v - i)/i.
    """
    rate = 1 / (1 + math.exp(-epsilon))
    tail = float(stats.binom.sf(correct - 1, guesses, rate))
    if correct == 0:
        return 1.0
    steps = np.arange(1, correct + 1)
    below = np.cumsum(stats.binom.pmf(correct - steps, guesses, rate))
    return min(1.0, tail + 2 * canaries * delta * float((below / steps).max()))


def _refuted(canaries: int, guesses: int, correct: int, delta: float, error: float) -> float:
    low, high = 0.0, _MOST_EPSILON
    if p_value(canaries, guesses, correct, low, delta) > error:
        return 0.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        if p_value(canaries, guesses, correct, middle, delta) <= error:
            low = middle
        else:
            high = middle
    return low


def gaussian_interval(
    scores_M: Scores, included_M: Included, delta: float, confidence: float = 0.95
) -> Interval:
    """Confidence interval of ε if the scores are Gaussian; from the distance of their means.

    Raises AuditError as `lower_bound`, and where all canaries are on one side.
    """
    _check(scores_M, included_M, delta)
    inside, outside = scores_M[included_M], scores_M[~included_M]
    if min(len(inside), len(outside)) < 2:
        raise AuditError("all canaries are in, or all out", remedy="use more canaries")
    freedom = len(inside) + len(outside) - 2
    pooled = inside.var(ddof=1) * (len(inside) - 1) + outside.var(ddof=1) * (len(outside) - 1)
    mu = float((inside.mean() - outside.mean()) / math.sqrt(pooled / freedom))
    # Of a standardised difference of means (Hedges and Olkin 1985, chapter 5).
    error = math.sqrt(1 / len(inside) + 1 / len(outside) + mu * mu / (2 * freedom))
    reach = float(stats.norm.isf((1 - confidence) / 2)) * error
    return Interval(
        mu, gaussian_epsilon(max(0.0, mu - reach), delta), gaussian_epsilon(mu + reach, delta)
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """ε at `delta` of μ-Gaussian differential privacy (Dong, Roth and Su 2019, corollary 2.13)."""

    def excess(epsilon: float) -> float:
        first = stats.norm.cdf(-epsilon / mu + mu / 2)
        second = math.exp(epsilon + float(stats.norm.logcdf(-epsilon / mu - mu / 2)))
        return float(first - second - delta)

    if mu <= 0 or excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-9))


def _check(scores_M: Scores, included_M: Included, delta: float) -> None:
    fits = scores_M.ndim == 1 and scores_M.shape == included_M.shape and included_M.dtype == bool
    if not fits or len(scores_M) < _FEWEST or not np.isfinite(scores_M).all():
        raise AuditError(
            f"an audit needs one finite score for each of at least {_FEWEST} canaries",
            remedy="use more canaries",
        )
    if not 0 <= delta < 1:
        raise AuditError("δ must be in [0, 1)", remedy="give the δ of the claim")
