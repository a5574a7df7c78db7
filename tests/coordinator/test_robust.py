"""Robust aggregation: the papers' rules, what hostile sites can do, memory, and what is planned."""

from __future__ import annotations

import functools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.aggregate import aggregate, pack, unpack
from coordinator.job import JobLoop
from coordinator.job_records import ADMITTED
from coordinator.optimiser import OptimiserState, apply
from coordinator.planning import guarantees
from coordinator.robust import robust_sum
from coordinator.status import job_status
from coordinator.store import UpdateRow
from privacy.errors import PlanError
from privacy.plan import AggregationSpec, RoundPlan
from privacy.store import writing
from tests.coordinator.fakes import Federation, StepLink, request

MEDIAN = AggregationSpec("median")
TRIMMED = AggregationSpec("trimmed-mean", 1)
KRUM = AggregationSpec("krum", 1)
RULES = pytest.mark.parametrize("spec", [MEDIAN, TRIMMED, KRUM], ids=lambda spec: spec.rule)
SIZE = 7

values = st.floats(-1e3, 1e3, width=32)
updates = st.lists(st.lists(values, min_size=SIZE, max_size=SIZE), min_size=5, max_size=9)


def packed(rows) -> list[bytes]:
    return [pack(np.array(row, np.float32)) for row in rows]


def location(spec, rows):
    """The coordinate-wise rules as the paper writes them, one coordinate at a time."""
    columns = np.array(rows, np.float64).T
    if spec.rule == "median":
        return np.array([np.median(column) for column in columns])
    f = spec.byzantine
    return np.array([np.mean(sorted(column)[f : len(column) - f]) for column in columns])


def krum_scores(rows, f):
    """Blanchard et al.'s s(i), one update at a time."""
    matrix_MD = np.array(rows, np.float64)
    scores = []
    for index, one in enumerate(matrix_MD):
        others = np.delete(matrix_MD, index, axis=0)
        squared = sorted(float(((one - other) ** 2).sum()) for other in others)
        scores.append(sum(squared[: len(matrix_MD) - f - 2]))
    return np.array(scores)


@RULES
@given(rows=updates, width=st.integers(1, SIZE + 1))
@settings(max_examples=40)
def test_rules_are_the_papers_however_it_is_sliced(tmp_path_factory, spec, rows, width):
    folder = tmp_path_factory.getbasetemp()
    got_D = robust_sum(spec, iter(packed(rows)), SIZE, folder, 8 * len(rows) * width) / len(rows)
    if spec.rule == "krum":
        scores = krum_scores(rows, spec.byzantine)
        chosen = [i for i, row in enumerate(rows) if np.allclose(got_D, row, rtol=1e-12)]
        assert scores[chosen].min() <= scores.min() * (1 + 1e-9)  # but for a tie within rounding
    else:
        np.testing.assert_allclose(got_D, location(spec, rows), rtol=1e-9, atol=1e-9)


@RULES
@given(seed=st.integers(0, 2**32 - 1), lie=values, place=st.integers(0, 6))
@settings(max_examples=30)
def test_one_hostile_site_moves_the_result_no_further_than_the_honest_ones_reach(
    tmp_path_factory, spec, seed, lie, place
):
    honest_MD = np.random.default_rng(seed).normal(size=(6, SIZE)).astype(np.float32)
    rows = np.insert(honest_MD, place, lie, axis=0)
    got_D = robust_sum(spec, iter(packed(rows)), SIZE, tmp_path_factory.getbasetemp()) / len(rows)
    if spec.rule == "krum" and not any(np.array_equal(got_D, row_D) for row_D in honest_MD):
        assert abs(lie) < 4  # chosen only where it lies among them
        return
    assert (got_D >= honest_MD.min(axis=0) - 1e-6).all()
    assert (got_D <= honest_MD.max(axis=0) + 1e-6).all()


def test_the_mean_is_moved_without_bound():
    """What the rules above are for: the sum follows one site wherever it goes."""
    rows = [[0.0] * SIZE] * 6 + [[7e6] * SIZE]
    assert (aggregate(packed(rows), SIZE, 7.0) == 1e6).all()


@pytest.fixture
def stored(tmp_path):
    """A job, and in its database 3 and 30 updates of 400 kB, as rounds leave them."""
    federation = Federation(tmp_path)
    job = federation.operations.submit(request())
    payload = np.ones(100_000, np.float32).tobytes()
    answer = {"code": ADMITTED, "payload_sha256": "", "size_bytes": 0, "received_at": 0.0}
    with writing(federation.engine) as session:
        for count in (3, 30):
            session.add_all(
                UpdateRow(job=job, number=count, site=f"s{i}", payload=payload, **answer)
                for i in range(count)
            )
    yield functools.partial(federation.tools.jobs.payloads, job)
    federation.engine.dispose()


@pytest.mark.parametrize("rule", ["mean", "median", "krum"])
def test_memory_does_not_grow_with_the_number_of_sites(stored, tmp_path, rule):
    peaks = []
    for count in (3, 30):
        tracemalloc.start()
        payloads = stored(count)
        if rule == "mean":
            total_D = aggregate(payloads, 100_000, 1.0)
        else:
            spec = AggregationSpec(rule, 0)  # of a plan that the test does not need
            total_D = robust_sum(spec, payloads, 100_000, tmp_path, slice_bytes=2**18)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert (total_D == count).all()
    assert peaks[1] < 1.1 * peaks[0] + 100_000
    assert peaks[1] < 6 * 400_000  # 30 updates together take 12 MB


def planned(**changes) -> RoundPlan:
    from coordinator.planning import make_plan
    from tests.coordinator.fakes import SmallArtifacts

    artifacts = SmallArtifacts().prepare(None, None)
    sites = {f"s{number}": None for number in range(7)}
    keys = {name: f"{number:064x}" for number, name in enumerate(sites)}
    made = request(**changes)
    return make_plan(made, artifacts, sites, job="ab" * 8, issued_at_s=1.8e9, site_keys=keys)


@RULES
def test_a_plan_carries_its_rule_and_claims_no_noise_but_one_sites(spec):
    asked = {"rule": spec.rule, "byzantine": spec.byzantine}
    plan = planned(aggregation=asked)
    assert RoundPlan.from_json(plan.to_json()) == plan
    assert plan.aggregation == spec
    assert plan.honest_sites == 1
    epsilon_loc, epsilon_sec = guarantees(plan, 3)
    assert epsilon_sec == epsilon_loc
    summed = planned()
    assert guarantees(summed, 3)[1] < epsilon_loc
    with pytest.raises(PlanError, match="honest_sites"):
        planned(aggregation=asked, honest_sites=6)


def test_a_plan_without_a_rule_has_the_bytes_that_it_always_had():
    assert b"aggregation" not in planned().to_json().replace(b"secure-aggregation", b"")
    assert planned().sha256 != planned(aggregation={"rule": "median"}).sha256


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"aggregation": {"rule": "median"}, "privacy_mode": "secure-aggregation"}, "only a sum"),
        ({"aggregation": {"rule": "median", "byzantine": 1}}, "takes no number"),
        ({"aggregation": {"rule": "mean", "byzantine": 1}}, "takes no number"),
        ({"aggregation": {"rule": "krum"}}, "needs a number"),
        ({"aggregation": {"rule": "krum", "byzantine": 3}}, "quorum must be at least 9"),
        ({"aggregation": {"rule": "krum", "byzantine": 2}, "quorum": 6}, "at least 7"),
        ({"aggregation": {"rule": "trimmed-mean", "byzantine": 3}, "quorum": 6}, "at least 7"),
        ({"aggregation": {"rule": "median"}, "quorum": 2}, "at least 3"),
    ],
)
def test_a_rule_that_cannot_hold_is_refused_when_planned(changes, what):
    with pytest.raises(PlanError, match=what):
        planned(**changes)


def test_a_job_with_a_median_ignores_a_site_that_shouts(tmp_path):
    federation = Federation(tmp_path, names=("east", "north", "south", "west"))
    hostile = federation.sites["south"]

    def shout(parcel):
        number = federation.tools.jobs.load(job).round.number
        payload = np.full(8, 40.0 + number, np.float32).tobytes()  # within the bound on the norm
        return hostile.sealed(job, number, payload)

    hostile.spoil = shout
    job = federation.operations.submit(request(rounds=2, aggregation={"rule": "median"}, quorum=4))
    seen: list[list[bytes]] = []
    jobs = federation.tools.jobs
    finish = jobs.finish_round

    def finishing(name, number, *arguments, **more):
        seen.append(list(jobs.payloads(name, number)))
        finish(name, number, *arguments, **more)

    object.__setattr__(jobs, "finish_round", finishing)
    loop = JobLoop(job, federation.tools, StepLink(federation.sites))
    while not loop.step():
        federation.clock.wait(0.05)
    status = job_status(federation.engine, job, ())
    assert (status.state, status.updates_admitted) == ("released", 8)
    plan = jobs.load(job).plan
    weights, state = np.zeros(8, np.float32), OptimiserState.initial(8)
    for payloads in seen:
        median_D = np.median([unpack(one).astype(np.float64) for one in payloads], axis=0)
        gradient_D = 4 * median_D / plan.divisor
        weights, state = apply(plan.optimiser, weights, gradient_D, state, plan.rounds)
    np.testing.assert_array_equal(unpack(jobs.checkpoint(job).weights), weights)
    (told, _) = [
        entry.fields["aggregation"]
        for entry in federation.tools.journal.ledger.entries()
        if entry.kind == "round.aggregated"
    ]
    assert told == "median"
    federation.engine.dispose()
