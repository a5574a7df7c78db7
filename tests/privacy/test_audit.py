"""The audit's bounds hold their promise on mechanisms whose ε is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from privacy.audit import AuditError, gaussian_epsilon, gaussian_interval, lower_bound, p_value

CANARIES = 1000
DELTA = 1e-5


def gaussian_scores(mu: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    included_M = draw.random(CANARIES) < 0.5
    return draw.standard_normal(CANARIES) + mu * included_M, included_M


@pytest.mark.parametrize("mu", [0.0, 1.0, 2.0])
def test_a_sound_mechanism_is_hardly_ever_refuted(mu):
    truth = gaussian_epsilon(mu, DELTA)
    bounds = [lower_bound(*gaussian_scores(mu, seed), DELTA).epsilon for seed in range(20)]
    assert sum(bound > truth for bound in bounds) <= 1  # one in twenty at most
    if mu >= 1:
        assert min(bounds) > 0


def test_answers_of_randomised_response_refute_a_smaller_epsilon():
    """Randomised response with ε = 2 is the case in which the bound is tight."""
    draw = np.random.default_rng(0)
    included_M = draw.random(CANARIES) < 0.5
    honest_M = draw.random(CANARIES) < 1 / (1 + math.exp(-2.0))
    told_M = np.where(honest_M, included_M, ~included_M)
    scores_M = told_M + 1e-3 * draw.random(CANARIES)
    bound = lower_bound(scores_M, included_M, 0.0)
    assert 1.5 < bound.epsilon < 2.0


def test_everything_guessed_right_refutes_much_and_chance_nothing():
    included_M = np.arange(CANARIES) % 2 == 0
    right = lower_bound(included_M.astype(float), included_M, DELTA)
    assert right.epsilon > 4
    wrong = lower_bound(-included_M.astype(float), included_M, DELTA)
    assert (wrong.epsilon, wrong.correct) == (0.0, 0)


def test_p_value_is_the_binomial_tail_and_grows_with_delta():
    rate = 1 / (1 + math.exp(-1.0))
    assert p_value(100, 50, 45, 1.0, 0.0) == pytest.approx(stats.binom.sf(44, 50, rate))
    assert p_value(100, 50, 45, 1.0, 1e-4) > p_value(100, 50, 45, 1.0, 0.0)
    assert p_value(100, 50, 0, 1.0, 0.0) == 1.0


def test_the_interval_covers_a_gaussian_and_its_epsilon_solves_its_equation():
    truth = gaussian_epsilon(1.3, DELTA)
    found = [gaussian_interval(*gaussian_scores(1.3, seed), DELTA) for seed in range(60)]
    assert sum(not one.low <= truth <= one.high for one in found) <= 8
    for mu in (0.1, 1.0, 5.0):
        epsilon = gaussian_epsilon(mu, DELTA)
        excess = stats.norm.cdf(-epsilon / mu + mu / 2)
        excess -= math.exp(epsilon) * stats.norm.cdf(-epsilon / mu - mu / 2)
        assert excess == pytest.approx(DELTA, rel=1e-4)
    assert gaussian_epsilon(0.0, DELTA) == 0.0


@pytest.mark.parametrize(
    ("scores", "included", "delta"),
    [
        (np.zeros(5), np.zeros(5, bool), DELTA),
        (np.zeros(40), np.zeros(30, bool), DELTA),
        (np.full(40, np.nan), np.zeros(40, bool), DELTA),
        (np.zeros(40), np.zeros(40, bool), 1.0),
    ],
)
def test_what_cannot_be_audited_is_refused(scores, included, delta):
    with pytest.raises(AuditError):
        lower_bound(scores, included, delta)
    with pytest.raises(AuditError):
        gaussian_interval(np.arange(40.0), np.zeros(40, bool), DELTA)
