"""The planner: its answer keeps the budget, its formula is the mechanism's, its verdicts follow."""

from __future__ import annotations

import functools
import math

import pytest
import torch

from privacy.accountant import REPLACE_ONE, MechanismEvent, epsilon, epsilon_sec
from privacy.errors import AccountingError, PlanError
from privacy.mechanism import clip_and_sum, privatise
from privacy.plan import AdapterSpec, TensorSpec
from privacy.planner import (
    SAMPLING_RATES,
    PlanAnswer,
    PlanQuestion,
    plan_privacy,
    signal_to_noise,
    verdict_of,
)
from privacy.random_source import DeterministicRandomSource
from tests.privacy.plans import make_plan

QUESTION = PlanQuestion(subjects=800, epsilon=4.0, delta=1e-5, rounds=20, sites=3, honest_sites=2)


@functools.cache
def answered() -> PlanAnswer:
    return plan_privacy(QUESTION)


def test_every_option_keeps_the_budget_and_wastes_little_of_it() -> None:
    answer = answered()
    for option in (answer.chosen, *answer.alternatives):
        events = [MechanismEvent(option.sampling_rate, option.noise_multiplier, option.rounds)]
        assert option.epsilon_loc == epsilon(events, 1e-5)
        assert 3.9 < option.epsilon_loc <= 4.0
        assert option.epsilon_sec == epsilon_sec(events, 1e-5, 2)
        assert option.expected_lot == pytest.approx(option.sampling_rate * 800)


def test_the_grid_is_rates_by_rounds_and_the_choice_is_on_it() -> None:
    answer = answered()
    options = (answer.chosen, *answer.alternatives)
    assert {(option.sampling_rate, option.rounds) for option in options} == {
        (rate, rounds) for rate in SAMPLING_RATES for rounds in (10, 20, 40)
    }
    assert answer.chosen.rounds == 20
    best = max(option.snr_job for option in options if option.rounds == 20)
    assert answer.chosen.snr_job >= 0.9 * best
    smaller = [o for o in options if o.rounds == 20 and o.expected_lot < answer.chosen.expected_lot]
    assert all(option.snr_job < 0.9 * best for option in smaller)


def test_the_curve_rises_to_the_jobs_epsilon() -> None:
    answer = answered()
    assert [point.round for point in answer.curve][-1] == 20
    for name in ("epsilon_loc", "epsilon_sec"):
        values = [getattr(point, name) for point in answer.curve]
        assert values == sorted(values)
        assert values[-1] == pytest.approx(getattr(answer.chosen, name), rel=1e-6)
    assert answer.epsilon_first_round * 20 > answer.chosen.epsilon_loc
    assert answer.epsilon_per_round * 20 == pytest.approx(answer.chosen.epsilon_loc)


def test_the_formula_is_what_the_mechanism_does() -> None:
    """A site of 300 like-minded subjects, all sampled: norms of signal and noise, measured."""
    size, subjects, sites = 2000, 300, 3
    spec = AdapterSpec("core", 2, 1.0, ("q",), (), (TensorSpec("core", (size,)),), "5a" * 32)
    plan = make_plan(adapter=spec, noise_multiplier=1.7, clipping_norm=0.5)
    source = DeterministicRandomSource(b"snr", for_tests=True)
    gradients_SD = torch.ones(subjects, size)
    sums = [clip_and_sum(gradients_SD, plan.clipping_norm)[0] for _ in range(sites)]
    noisy = [privatise(sum_D, plan, source).double() for sum_D in sums]
    signal_D, update_D = torch.stack(sums).sum(0), torch.stack(noisy).sum(0)
    measured = float(signal_D.norm() / (update_D - signal_D).norm())
    assert measured == pytest.approx(signal_to_noise(sites, subjects, 1.0, 1.7, size), rel=0.05)


@pytest.mark.parametrize(
    ("sites", "subjects", "rate", "sigma", "size", "rounds", "verdict"),
    [
        (3, 3000, 0.05, 0.57, 3584, 24, "can-learn"),  # kept 77 % of the noiseless gain
        (3, 1600, 0.09375, 0.667, 3584, 20, "can-learn"),  # the demo: 89 %
        (3, 300, 0.3, 1.396, 8192, 40, "may-learn-a-part"),  # 40 %
        (1, 100, 0.2, 3.214, 540_000, 200, "cannot-learn"),  # nothing
    ],
)
def test_verdicts_are_those_of_the_runs_on_record(
    sites: int, subjects: int, rate: float, sigma: float, size: int, rounds: int, verdict: str
) -> None:
    snr = signal_to_noise(sites, subjects, rate, sigma, size)
    assert verdict_of(snr * math.sqrt(rounds)) == verdict


def test_a_given_sampling_rate_is_taken_and_replace_one_needs_more_noise() -> None:
    fields = {"subjects": 500, "epsilon": 6.0, "delta": 1e-5, "rounds": 4, "sampling_rate": 0.13}
    added = plan_privacy(PlanQuestion(**fields))  # type: ignore[arg-type]
    replaced = plan_privacy(PlanQuestion(**fields, adjacency=REPLACE_ONE))  # type: ignore[arg-type]
    assert added.chosen.sampling_rate == replaced.chosen.sampling_rate == 0.13
    assert added.chosen.expected_lot == 65
    assert replaced.chosen.noise_multiplier > added.chosen.noise_multiplier
    assert added.chosen.epsilon_sec == added.chosen.epsilon_loc  # one site


@pytest.mark.parametrize(
    "changes",
    [{"subjects": 0}, {"rounds": 0}, {"rounds": 100_001}, {"sites": 0}, {"honest_sites": 4},
     {"honest_sites": 0}, {"adapter_size": 0}],
)  # fmt: skip
def test_impossible_questions_are_refused(changes: dict[str, int]) -> None:
    fields = {"subjects": 800, "epsilon": 4.0, "delta": 1e-5, "rounds": 40, "sites": 3}
    with pytest.raises(PlanError):
        PlanQuestion(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"epsilon": 0.0}, {"delta": 1.0}, {"sampling_rate": 2.0}, {"adjacency": "near"}]
)
def test_questions_without_an_answer_are_refused(changes: dict[str, object]) -> None:
    fields: dict[str, object] = {"subjects": 80, "epsilon": 4.0, "delta": 1e-5, "rounds": 2}
    with pytest.raises(AccountingError):
        plan_privacy(PlanQuestion(**{**fields, **changes}))  # type: ignore[arg-type]
