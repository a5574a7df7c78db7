"""Attacks that succeed without noise gain little from what is released."""

from __future__ import annotations

import pytest

from tests.attacks.inference import DELTA, EPSILONS, Outcome, attack_all, most_advantage

TRIALS = 40
# What each attack gained over 200 trials at ε = 8 and 1, plus four standard errors of 40 trials.
MOST_RELEASED = {
    "gradient inversion: the words": {8.0: 0.5, 1.0: 0.3},
    "speaker inference": {8.0: 0.6, 1.0: 0.35},
    "membership inference": {8.0: 0.9, 1.0: 0.7},
}
LEAST_UNNOISED = {
    "gradient inversion: the words": 0.95,
    "speaker inference": 0.1,
    "membership inference": 0.2,
}


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    return attack_all(TRIALS)


def test_attacks_work_where_there_is_no_noise(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        assert outcome.unnoised >= LEAST_UNNOISED[outcome.attack], outcome


def test_no_attack_gains_more_from_a_release_than_it_used_to(outcomes: list[Outcome]) -> None:
    for outcome in outcomes:
        for epsilon, gain in outcome.released.items():
            assert gain <= MOST_RELEASED[outcome.attack][epsilon], outcome


def test_membership_gains_no_more_than_epsilon_allows(outcomes: list[Outcome]) -> None:
    (membership,) = (o for o in outcomes if o.attack == "membership inference")
    for epsilon in EPSILONS:
        error = 4 * 0.5 / TRIALS**0.5 * 2
        assert membership.released[epsilon] <= most_advantage(epsilon, DELTA) + error
    assert most_advantage(0.0, 0.0) == 0.0
