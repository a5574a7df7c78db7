"""Probes find what they are for, pass honest rounds, and say nothing but passed or failed."""

from __future__ import annotations

import dataclasses
import functools
import json
import math

import pytest
import torch

from privacy.mechanism import privatise
from privacy.per_subject import PerSubjectEngine
from privacy.plan import TensorSpec
from privacy.probes import (
    LotRow,
    Loudness,
    ObservedSource,
    ProbedRound,
    ProbeError,
    ProbeReceipt,
    ProbeResult,
    Sample,
    bounds,
    noise,
    probe,
    require_probed,
    sampler,
)
from privacy.random_source import DeterministicRandomSource, SystemRandomSource
from tests.privacy.per_subject_models import TOKENS, WIDTH, SmallSpeech, adapters_on
from tests.privacy.plans import make_plan

MARGIN = 1e-3
CLEAN_ROUNDS, CLEAN_ROUNDS_SLOW = 50, 1000
POPULATION = 60


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Marks:
    """Marks of one site, in memory."""

    def __init__(self):
        self.seen = set()

    def key(self):
        return b"k" * 32

    def note(self, marks):
        fresh = not self.seen & set(marks)
        self.seen |= set(marks)
        return fresh


class Simulator:
    """Rounds of a small model, over the real engine, mechanism and source."""

    def __init__(self, source=None, **changes):
        torch.manual_seed(0)
        self.model = SmallSpeech(top_k=2)
        self.engine = PerSubjectEngine(adapters_on(self.model, "core"))
        plan = make_plan(**changes)
        adapter = dataclasses.replace(
            plan.adapter, tensors=(TensorSpec("all", (self.engine.size,)),)
        )
        self.plan = dataclasses.replace(plan, adapter=adapter)
        self.source = source or SystemRandomSource()
        self.marks = Marks()
        self.loudness = Loudness()

    def step(self, subjects, rows_per_step):
        rows = [
            (number, subject.loudness / subject.rows, 10 * subject.seed + row)
            for number, subject in enumerate(subjects)
            for row in range(subject.rows)
        ]
        batches = [
            rows[start : start + rows_per_step] for start in range(0, len(rows), rows_per_step)
        ]
        return self.engine.clipped_sum(
            [(functools.partial(self.losses, b), torch.tensor([r[0] for r in b])) for b in batches],
            len(subjects),
            self.plan.clipping_norm * (1 - MARGIN),
        )

    def losses(self, batch):
        x, target = [], []
        for _, _, seed in batch:
            generator = torch.Generator().manual_seed(seed)
            x.append(torch.randn(TOKENS, WIDTH, generator=generator))
            target.append(torch.randint(0, 7, (TOKENS,), generator=generator))
        share = torch.tensor([row[1] for row in batch])
        return self.model.losses(torch.stack(x), torch.stack(target)) * share

    def done(self, round_=1, spoil=lambda update_D: update_D):
        draws = ObservedSource(self.source)
        eligible = list(range(100, 100 + POPULATION))
        chosen = draws.poisson_sample(POPULATION, self.plan.sampling_rate)
        sum_D = torch.randn(self.engine.size, dtype=torch.float64)
        sum_D *= len(chosen) * self.plan.clipping_norm / 2 / float(sum_D.norm())
        return ProbedRound(
            plan=self.plan,
            round=round_,
            step=self.step,
            margin=MARGIN,
            eligible=eligible,
            rows=[LotRow(eligible[index], number) for number, index in enumerate(chosen)],
            sum_D=sum_D,
            update_D=spoil(privatise(sum_D, self.plan, draws)),
            draws=draws,
            loudness=self.loudness,
        )

    def probe(self, round_=1, **how):
        return probe(self.done(round_, **how), self.marks)


def failed(receipt):
    return {check for result in receipt.results for check in result.failed}


def clean_rounds(count):
    for rate in (0.02, 0.25, 1.0):
        simulator = Simulator(sampling_rate=rate)
        for round_ in range(1, count // 3 + 2):
            assert simulator.probe(round_).passed, round_


def test_clean_rounds_raise_no_alarm():
    clean_rounds(CLEAN_ROUNDS)


@pytest.mark.slow
def test_a_thousand_clean_rounds_raise_no_alarm():
    clean_rounds(CLEAN_ROUNDS_SLOW)


def test_a_receipt_is_the_same_whatever_the_data_and_holds_no_number():
    first, second = Simulator(), Simulator(sampling_rate=0.5)
    fields = first.probe(1).fields()
    assert fields == second.probe(7).fields()
    assert all(isinstance(value, str) for value in fields.values())
    broken = Simulator().probe(spoil=lambda update_D: 2 * update_D).fields()
    assert all(isinstance(v, str) for v in json.loads(json.dumps(broken))["failed"])


# --- noise


def shifted(z):
    return z + 0.6


LAWS = {
    "mean": shifted,
    "variance": lambda z: 1.5 * z,
    "independence": lambda z: (z + z.roll(1)) / math.sqrt(2),
    "tails": lambda z: torch.distributions.Laplace(0.0, math.sqrt(0.5)).icdf(torch.special.ndtr(z)),
    "shape": lambda z: torch.where(z > 0, 1.0, -1.0) + 0.0 * z,
}


@pytest.mark.parametrize("check", LAWS)
def test_each_departure_from_the_law_is_named(check):
    z_N = SystemRandomSource().normal(4000)
    assert all(noise.law_checks(z_N).values())
    assert not noise.law_checks(LAWS[check](z_N))[check]


def test_noise_that_is_not_the_sources_is_found():
    lawful = Simulator().probe(
        spoil=lambda update_D: (
            update_D + torch.zeros_like(update_D).index_fill_(0, torch.tensor([3]), 0.5)
        )
    )
    assert "is-the-draw" in failed(lawful)


def test_a_source_that_starts_again_is_found_after_a_restart():
    site = Simulator(DeterministicRandomSource(b"seed", for_tests=True))
    assert site.probe(1).passed
    assert site.probe(2).passed
    site.source = DeterministicRandomSource(b"seed", for_tests=True)
    assert failed(site.probe(3)) == {"never-drawn-before"}


def test_undefined_noise_is_found():
    assert failed(Simulator().probe(spoil=lambda update_D: update_D * torch.nan)) == {"finite"}


# --- sampler


class FixedSize(SystemRandomSource):
    """The shuffled batch: everyone equally often, but always the same number."""

    def poisson_sample(self, n, rate):
        return sorted(torch.randperm(n)[: round(n * rate)].tolist())


class InPairs(SystemRandomSource):
    """Right marginals and sizes that vary, but neighbours come together."""

    def poisson_sample(self, n, rate):
        pairs = super().poisson_sample((n + 1) // 2, rate)
        return [index for pair in pairs for index in (2 * pair, 2 * pair + 1) if index < n]


class Repeating(SystemRandomSource):
    """The same sample every time."""

    def poisson_sample(self, n, rate):
        return DeterministicRandomSource(b"same", for_tests=True).poisson_sample(n, rate)


class TooMany(SystemRandomSource):
    def poisson_sample(self, n, rate):
        return super().poisson_sample(n, min(1.0, 2 * rate))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
@pytest.mark.parametrize(
    ("source", "check"),
    [
        (FixedSize, "size-varies"),
        (InPairs, "subjects-independent"),
        (Repeating, "draws-independent"),
        (TooMany, "marginal"),
    ],
)
def test_each_wrong_sampler_is_named(source, check, rate):
    assert all(sampler.law_checks(SystemRandomSource(), rate).values())
    assert not sampler.law_checks(source(), rate)[check]


@pytest.mark.parametrize("rate", [1e-4, 1e-3, 0.3, 0.999, 1.0])
def test_the_sampler_of_the_house_passes_at_every_rate(rate):
    for _ in range(5):
        assert all(sampler.law_checks(SystemRandomSource(), rate).values())


def test_the_lot_is_the_sample_and_a_subject_is_one_number():
    checks = functools.partial(
        sampler.sampler_checks, rate=0.5, eligible=[7, 8, 9, 10], cap=2, source=SystemRandomSource()
    )
    sample = [Sample(4, 0.5, (0, 2))]
    rows = [LotRow(7, 0), LotRow(7, 0), LotRow(9, 1)]
    assert all(checks(sample, rows=rows).values())
    assert not checks(sample * 2, rows=rows)["sampled-once"]
    assert not checks([Sample(4, 0.9, (0, 2))], rows=rows)["sampled-once"]
    assert not checks([Sample(4, 0.5, (0, 0, 2))], rows=rows)["no-duplicates"]
    assert not checks(sample, rows=[*rows, LotRow(8, 2)])["only-the-sampled"]
    assert not checks(sample, rows=[LotRow(7, 0), LotRow(7, 1)])["one-number-a-subject"]
    assert not checks(sample, rows=[LotRow(7, 0)] * 3)["capped"]


# --- gradients


def test_a_step_that_leaves_the_loud_subject_unclipped_fails():
    simulator = Simulator()
    honest = simulator.step
    simulator.step = lambda *lot: (honest(*lot)[0] * 1.01, honest(*lot)[1])
    assert "at-most-the-norm" in failed(simulator.probe())


def test_a_step_that_leaves_no_room_for_rounding_fails():
    simulator = Simulator()
    honest, room = simulator.step, 1 - MARGIN

    def roomless(subjects, rows_per_step):
        sum_D, norms_U = honest(subjects, rows_per_step)
        return (sum_D / room if len(subjects) == 1 else sum_D), norms_U

    simulator.step = roomless
    assert "leaves-room" in failed(simulator.probe())


@pytest.mark.parametrize("guess", [1e-6, 1.0, 1e6])
def test_a_bad_guess_of_loudness_costs_a_pass_and_no_alarm(guess):
    simulator = Simulator()
    honest, calls = simulator.step, []
    simulator.step = lambda *lot: calls.append(lot) or honest(*lot)
    simulator.loudness.norm = guess
    assert simulator.probe(1).passed
    first = len(calls)
    assert simulator.probe(1).passed
    assert len(calls) - first == 3 <= first <= 4


def test_a_sum_beyond_what_its_lot_allows_fails():
    simulator = Simulator()
    done = simulator.done()
    largest = simulator.plan.clipping_norm * len(done.rows)
    sum_D = done.sum_D / float(done.sum_D.norm()) * largest * 1.001
    update_D = privatise(sum_D, simulator.plan, done.draws)
    done.draws.normals.pop(0)
    receipt = probe(dataclasses.replace(done, sum_D=sum_D, update_D=update_D), simulator.marks)
    assert failed(receipt) == {"lot-bounded"}


# --- bounds


def test_limits_hold_their_promise_against_scipy():
    from scipy import stats

    for degrees in (1, 48, 1000, 270_336):
        for tail in (0.3, 1e-6, bounds.ALPHA):
            low, high = stats.chi2.ppf(tail, degrees), stats.chi2.isf(tail, degrees)
            lower = bounds.chi_square_tail(low, degrees, lower=True)
            upper = bounds.chi_square_tail(high, degrees, lower=False)
            assert (lower, upper) == pytest.approx((tail, tail), rel=1e-3)
    for trials, rate in ((50, 0.1), (4000, 0.0455), (4000, 0.9)):
        allowed = [k for k in range(trials + 1) if bounds.binomial_holds(k, trials, rate)]
        outside = stats.binom.cdf(allowed[0] - 1, trials, rate)
        outside += stats.binom.sf(allowed[-1], trials, rate)
        assert outside <= bounds.ALPHA
    assert 2 * stats.norm.sf(bounds.gaussian_limit()) <= bounds.ALPHA
    for q, n in ((0.01, 800), (0.3, 60)):
        alike = [round(n * q)] * 48
        assert not sampler._spread_holds(alike, n, q)


# --- receipts


def test_a_failed_probe_stops_by_name_and_an_auditor_misses_what_is_missing():
    receipt = ProbeReceipt((ProbeResult("noise", "failed", ("variance",)),))
    with pytest.raises(ProbeError, match="noise failed"):
        receipt.require_passed()
    good = Simulator().probe().fields()
    require_probed(good, 2.0)
    for name in ("suite", "sensitivity", "noise", "sampler", "alone-equals-in-batch"):
        lacking = {key: value for key, value in good.items() if key != name}
        with pytest.raises(ValueError, match=r"probe"):
            require_probed(lacking, 2.0)
        with pytest.raises(ValueError, match=r"probe"):
            require_probed(good | {name: "not-applicable"}, 2.0)
    unprotected = Simulator(privacy_mode="none", noise_multiplier=0.0).probe().fields()
    require_probed(unprotected, 0.0)
    with pytest.raises(ValueError, match="noise"):
        require_probed(unprotected, 2.0)
