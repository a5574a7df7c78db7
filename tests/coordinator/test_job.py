"""The job loop against small sites: what happens to a round under every fault of a site."""

from __future__ import annotations

import dataclasses
import hashlib
import json

import numpy as np
import pytest
from safetensors.numpy import load
from sqlalchemy import text

from coordinator.aggregate import pack, unpack
from coordinator.errors import CoordinatorError
from coordinator.job import POLL_S, JobLoop
from coordinator.link import Delivery
from coordinator.local_link import LocalLink
from coordinator.optimiser import OptimiserState, apply
from coordinator.release import ADAPTER_FILE, MANIFEST_FILE
from privacy.errors import BudgetError, LedgerError
from privacy.parcel import ReleaseManifest
from privacy.signing import open_as
from privacy.store import writing
from tests.coordinator.fakes import SPEC, Federation, StepLink, make_tools, request


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def link(federation):
    return StepLink(federation.sites)


def run(federation, link, job, until_round=None):
    """Run to the end, or until `until_round` rounds are done."""
    loop = JobLoop(job, federation.tools, link)
    if until_round is None:
        loop.run(federation.clock.wait)
        return federation.operations.status(job)
    while federation.tools.jobs.load(job).rounds_done < until_round:
        assert not loop.step()
        federation.clock.wait(POLL_S)
    return federation.operations.status(job)


def events(federation, kind):
    ledger = federation.tools.journal.ledger
    return [entry.fields for entry in ledger.entries(0, ledger.size) if entry.kind == kind]


def expected_weights(federation, job, sites, rounds):
    """The same training by hand: sums over `sites`, the public divisor, Adam."""
    plan = federation.tools.jobs.load(job).plan
    weights, state = np.zeros(SPEC.size, np.float32), OptimiserState.initial(SPEC.size)
    for number in range(1, rounds + 1):
        updates = [
            unpack(federation.sites[s].update(job, number, pack(weights)).payload).astype(float)
            for s in sorted(sites)
        ]
        gradient = np.sum(updates, axis=0) / (3 * 0.3 * 100)
        weights, state = apply(plan.optimiser, weights, gradient, state, rounds)
    return weights


def test_a_job_ends_in_a_signed_release_of_the_right_numbers(federation, link):
    job = federation.operations.submit(request())
    status = run(federation, link, job)
    assert (status.state, status.rounds_done, status.updates_admitted) == ("released", 3, 9)
    assert [site.release_code for site in status.sites] == ["ok"] * 3

    folder = federation.tools.releases_folder / status.release
    trusted = (federation.identity.public,)
    manifest = open_as(ReleaseManifest, (folder / MANIFEST_FILE).read_bytes(), trusted)
    adapter = (folder / ADAPTER_FILE).read_bytes()
    assert manifest.adapter_sha256 == hashlib.sha256(adapter).hexdigest()
    assert manifest.epsilon_loc == status.epsilon_loc > manifest.epsilon_sec > 0
    weights = expected_weights(federation, job, federation.sites, 3)
    np.testing.assert_array_equal(load(adapter)["weights"], weights)


def test_the_threaded_link_gives_the_same_numbers(federation):
    job = federation.operations.submit(request())
    link = LocalLink(federation.sites)
    run(federation, link, job)
    link.close()
    weights = expected_weights(federation, job, federation.sites, 3)
    assert unpack(federation.tools.jobs.checkpoint(job).weights).tolist() == weights.tolist()


def test_the_ledger_tells_what_each_round_ran(federation, link):
    job = federation.operations.submit(request())
    run(federation, link, job)
    rounds = events(federation, "round.aggregated")
    assert [entry["round"] for entry in rounds] == [1, 2, 3]
    assert all(entry["noise_multiplier"] == 1.0 and entry["delta"] == 1e-6 for entry in rounds)
    assert all(entry["admitted"] == ["east", "north", "west"] for entry in rounds)
    kinds = {entry.kind for entry in federation.tools.journal.ledger.entries()}
    assert {"site.enrolled", "job.planned", "update.answered", "release.signed"} <= kinds


def test_payloads_are_dropped_once_the_sum_is_checkpointed(federation, link):
    job = federation.operations.submit(request())
    run(federation, link, job)
    with federation.engine.connect() as connection:
        kept = connection.exec_driver_sql('SELECT count(payload) FROM "update"').scalar()
    assert kept == 0


def test_a_hostile_site_is_quarantined_and_the_release_is_that_of_the_others(federation, link):
    north = federation.sites["north"]
    north.spoil = lambda parcel: dataclasses.replace(parcel, payload=b"\xff" * 32)
    job = federation.operations.submit(request(quorum=2))
    status = run(federation, link, job)
    assert status.state == "released"
    assert status.updates_refused == {"payload-mismatch": 1}
    assert north.orders == [1]  # not asked again
    assert [s.quarantine_code for s in federation.operations.sites() if s.site == "north"] == [
        "payload-mismatch"
    ]
    weights = expected_weights(federation, job, {"east", "west"}, 3)
    assert unpack(federation.tools.jobs.checkpoint(job).weights).tolist() == weights.tolist()
    assert events(federation, "site.quarantined")[0]["code"] == "payload-mismatch"


def test_a_site_posing_as_another_is_refused(federation, link):
    east, north = federation.sites["east"], federation.sites["north"]
    north.spoil = lambda parcel: east.sealed(job, 1, parcel.payload)
    job = federation.operations.submit(request(quorum=2, rounds=1))
    status = run(federation, link, job)
    assert status.latest_rounds[0].refused == {"north": "signature-invalid"}
    assert status.latest_rounds[0].admitted == ("east", "west")


def test_bytes_of_an_earlier_round_are_refused_as_a_replay(federation, link):
    north = federation.sites["north"]
    first: list[bytes] = []

    def replay(parcel):
        first.append(parcel.payload)
        return north.sealed(job, len(first), first[0])

    north.spoil = replay
    job = federation.operations.submit(request(quorum=2, rounds=2))
    status = run(federation, link, job)
    assert status.latest_rounds[0].refused == {}
    assert status.latest_rounds[1].refused == {"north": "update-replayed"}


def test_a_site_that_refuses_a_round_is_counted_not_quarantined(federation, link):
    north = federation.sites["north"]
    north.spoil = lambda _: north.answer("refused", job, "0" * 64, "budget-exceeded")
    job = federation.operations.submit(request(quorum=2))
    status = run(federation, link, job)
    assert status.updates_refused == {"budget-exceeded": 3}
    assert all(site.quarantine_code is None for site in federation.operations.sites())


@pytest.mark.parametrize("code", ["Patient Smith", "/srv/audio", "ok", "x" * 65])
def test_a_refusal_may_carry_nothing_but_a_code(federation, link, code):
    north = federation.sites["north"]
    north.spoil = lambda _: north.answer("refused", job, "0" * 64, code)
    job = federation.operations.submit(request(quorum=2, rounds=1))
    assert run(federation, link, job).updates_refused == {"answer-invalid": 1}


def test_a_vetoed_plan_is_never_ordered(federation, link):
    federation.sites["north"].veto = "policy-noise"
    job = federation.operations.submit(request(quorum=2))
    status = run(federation, link, job)
    assert status.state == "released"
    assert {s.site: s.plan_code for s in status.sites}["north"] == "policy-noise"
    assert federation.sites["north"].orders == []
    assert ("north", "release") not in link.sent


def test_too_many_vetoes_abandon_the_job_before_any_round(federation, link):
    for site in federation.sites.values():
        site.veto = "policy-base"
    job = federation.operations.submit(request(quorum=2))
    status = run(federation, link, job)
    assert (status.state, status.round) == ("abandoned", 0)
    assert status.reason == "below quorum: " + "; ".join(
        f"{name} refused (policy-base)" for name in ("east", "north", "west")
    )
    assert all(site.orders == [] for site in federation.sites.values())


def test_a_refusal_is_named_with_its_code_apart_from_sites_not_waited_for(federation, link):
    federation.sites["north"].veto = "policy-adapter"
    link.silent = {"west"}
    job = federation.operations.submit(request())
    reason = run(federation, link, job).reason
    assert reason == "below quorum: north refused (policy-adapter); west not waited for"
    assert events(federation, "job.abandoned")[0]["refused"] == {"north": "policy-adapter"}


def test_a_refusal_within_a_round_is_named_with_its_code(federation, link):
    job = federation.operations.submit(request())
    run(federation, link, job, until_round=1)
    west = federation.sites["west"]
    west.spoil = lambda parcel: west.answer("refused", job, "0" * 64, "training-failed")
    reason = run(federation, link, job).reason
    assert reason == "round 2 stayed below quorum: west refused (training-failed)"


def test_a_slow_site_is_waited_for_until_the_deadline_and_named(federation, link):
    job = federation.operations.submit(request(quorum=2, rounds=1, deadline_s=5.0))
    started_s = federation.clock.now_s
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).state == "preparing":
        loop.step()
        federation.clock.wait(POLL_S)
        link.silent = {"west"}
    loop.run(federation.clock.wait)
    status = federation.operations.status(job)
    assert status.latest_rounds[0].stragglers == ("west",)
    assert federation.clock.now_s - started_s >= 5.0
    assert events(federation, "round.aggregated")[0]["missing"] == ["west"]


def test_below_quorum_at_the_deadline_abandons_and_names_the_missing(federation, link):
    job = federation.operations.submit(request(deadline_s=5.0))
    run(federation, link, job, until_round=1)
    link.silent = {"east", "west"}
    status = run(federation, link, job)
    assert status.state == "abandoned"
    assert status.reason == "round 2 stayed below quorum: no answer from east, west"
    assert events(federation, "job.abandoned")[0]["missing"] == ["east", "west"]


def test_an_abandoned_job_resumes_at_its_round_with_the_updates_it_has(federation, link):
    job = federation.operations.submit(request(deadline_s=5.0))
    run(federation, link, job, until_round=1)
    link.silent = {"west"}
    assert run(federation, link, job).state == "abandoned"
    link.silent = set()
    asked = len(federation.sites["north"].orders)
    federation.operations.resume(job)
    assert run(federation, link, job).state == "released"
    assert federation.sites["north"].orders[asked:] == [3]  # its update of round 2 was kept
    weights = expected_weights(federation, job, federation.sites, 3)
    assert unpack(federation.tools.jobs.checkpoint(job).weights).tolist() == weights.tolist()


def test_only_an_abandoned_job_can_be_resumed(federation):
    job = federation.operations.submit(request())
    with pytest.raises(CoordinatorError) as caught:
        federation.operations.resume(job)
    assert caught.value.code == "job-not-abandoned"


def test_an_offline_site_joins_the_round_when_it_comes_back(federation, link):
    link.offline = {"west"}
    job = federation.operations.submit(request(quorum=2, rounds=1, deadline_s=30.0))
    loop = JobLoop(job, federation.tools, link)
    while not loop.step():
        federation.clock.wait(POLL_S)
        if ("east", "round") in link.sent:
            link.offline = set()
    status = federation.operations.status(job)
    assert status.latest_rounds[0].admitted == ("east", "north", "west")
    assert [kind for site, kind in link.sent if site == "west"] == ["prepare", "round", "release"]


def test_a_failed_delivery_is_asked_again_after_a_pause(federation, link):
    link.failing = {"west": "flower-error-5"}
    job = federation.operations.submit(request(rounds=1))
    status = run(federation, link, job)
    assert status.updates_admitted == 3
    assert [kind for site, kind in link.sent if site == "west"].count("prepare") == 2


def test_a_site_revoked_in_mid_round_is_shut_out_of_it(federation, link):
    job = federation.operations.submit(request(quorum=2, rounds=1))
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).round is None:
        link.silent = {"north"} if federation.tools.jobs.load(job).state == "running" else set()
        loop.step()
    federation.operations.revoke("north")
    assert "north" not in federation.fleet
    loop.run(federation.clock.wait)
    status = federation.operations.status(job)
    assert status.state == "released"
    assert status.latest_rounds[0].admitted == ("east", "west")


def test_restart_between_rounds_goes_on_at_the_next(federation, link, tmp_path):
    job = federation.operations.submit(request())
    run(federation, link, job, until_round=1)
    federation.engine.dispose()
    federation.tools, federation.engine = make_tools(
        tmp_path, federation.identity, federation.clock
    )
    federation.operations = dataclasses.replace(
        federation.operations, tools=federation.tools, engine=federation.engine
    )
    status = run(federation, StepLink(federation.sites), job)
    assert status.state == "released"
    assert federation.sites["east"].orders[0] == 1
    assert federation.sites["east"].orders.count(1) == 1
    weights = expected_weights(federation, job, federation.sites, 3)
    assert unpack(federation.tools.jobs.checkpoint(job).weights).tolist() == weights.tolist()


def test_time_spent_down_does_not_count_against_a_round(federation, link):
    job = federation.operations.submit(request(deadline_s=5.0))
    run(federation, link, job, until_round=1)
    federation.clock.now_s += 86_400
    assert run(federation, StepLink(federation.sites), job).state == "released"


def test_a_job_that_cannot_be_exported_goes_on_once_it_can(federation, link):
    job = federation.operations.submit(request(rounds=1))
    export = federation.tools.artifacts.export

    def missing(*_):
        raise CoordinatorError("the base is gone", remedy="restore it", code="base-missing")

    federation.tools.artifacts.export = missing
    with pytest.raises(CoordinatorError):
        run(federation, link, job)
    federation.tools.jobs.abandon(job, "base-missing", federation.clock())
    assert federation.operations.status(job).reason == "base-missing"

    federation.tools.artifacts.export = export
    federation.operations.resume(job)
    status = run(federation, link, job)
    assert (status.state, status.updates_admitted) == ("released", 3)


def test_a_ledger_that_was_tampered_with_stops_the_coordinator(federation, link, tmp_path):
    job = federation.operations.submit(request())
    run(federation, link, job, until_round=1)
    with writing(federation.engine) as session:
        session.execute(text("DELETE FROM ledger_entry WHERE position = 2"))
    with pytest.raises(LedgerError):
        make_tools(tmp_path, federation.identity, federation.clock)


def test_without_privacy_no_guarantee_is_claimed(federation, link):
    job = federation.operations.submit(request(privacy_mode="none", noise_multiplier=None))
    status = run(federation, link, job)
    assert status.epsilon_loc is None
    assert json.dumps(dataclasses.asdict(status))
    _, statement, _ = federation.tools.jobs.release(job)
    manifest = open_as(ReleaseManifest, statement, (federation.identity.public,))
    assert manifest.epsilon_loc == float("inf")


def test_status_counts_a_round_as_spent_from_its_order_on(federation, link):
    job = federation.operations.submit(request())
    before = federation.operations.status(job)
    assert (before.epsilon_loc, before.round) == (0.0, 0)
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).round is None:
        loop.step()
    status = federation.operations.status(job)
    assert status.rounds_done == 0
    assert status.epsilon_loc > 0


def test_a_sites_error_crosses_the_local_link_as_a_code(federation):
    def failing(parcel):
        raise BudgetError("patient 17 is over the cap", remedy="none")

    link = LocalLink({"north": failing})
    message = link.send("north", federation.sites["east"].answer("accepted", "", ""))
    while not (deliveries := link.poll([message])):
        pass
    link.close()
    assert deliveries == [Delivery(message, "north", error_code="budget-exceeded")]
