"""Secure aggregation through the real agents and the real job loop: dropouts, restarts, resumes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from coordinator.aggregate import unpack
from coordinator.job import JobLoop
from coordinator.local_link import LocalLink
from privacy.ledger_verify import verify_export
from privacy.secure_aggregation.fixed_point import FixedPoint
from tests.coordinator.fakes import make_tools, request
from tests.e2e.secure_federation import NAMES, SecureFederation

SGD = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant"}
STAGES = ("secure-keys", "secure-shares", "secure-round", "secure-confirm", "secure-unmask")
LATER = {stage: set(STAGES[place:]) for place, stage in enumerate(STAGES)}
SLOW_BUT_ONE = [
    s if s == "secure-round" else pytest.param(s, marks=pytest.mark.slow) for s in STAGES
]
IN_THE_SUM = {"secure-confirm", "secure-unmask"}


@pytest.fixture
def federation(tmp_path):
    made = SecureFederation(tmp_path)
    yield made
    made.close()


def weights(federation, job):
    return unpack(federation.tools.jobs.checkpoint(job).weights)


def survivors_without(dropped, stage):
    return tuple(name for name in NAMES if stage in IN_THE_SUM or name not in dropped)


def check_sum(federation, job, survivors):
    expected_D = -federation.expected_D(job, survivors)
    np.testing.assert_array_equal(weights(federation, job), expected_D.astype(np.float32))


def test_the_release_is_the_step_by_the_sum_and_every_ledger_tells(federation, tmp_path):
    job = federation.submit(optimiser=SGD, rounds=2)
    status = federation.run(job)
    assert (status.state, status.updates_admitted) == ("released", 10)
    total_D = federation.expected_D(job, NAMES, 1) + federation.expected_D(job, NAMES, 2)
    np.testing.assert_allclose(weights(federation, job), -total_D, rtol=0, atol=1e-8)

    rounds = federation.ledger_events("round.aggregated")
    assert [entry["privacy_mode"] for entry in rounds] == ["secure-aggregation"] * 2
    for site in federation.sites.values():
        unmasked = site.events("sum.unmasked")
        assert [entry["survivors"] for entry in unmasked] == [list(NAMES)] * 2
        assert [entry["roster_sha256"] for entry in unmasked] == [
            entry["roster_sha256"] for entry in rounds
        ]
        trained = site.events("round.trained")
        plan = federation.tools.jobs.load(job).plan
        assert trained[-1]["honest_sites"] == plan.honest_sites == 4
        assert trained[-1]["epsilon_sec"] < trained[-1]["epsilon_loc"]
        # What is charged is what holds trusting nobody.
        spent = site.budget.spent("dictation").epsilon_loc
        assert spent == pytest.approx(trained[-1]["epsilon_loc"]) == status.epsilon_loc
        site.ledger.export(tmp_path / "export.jsonl")
        report = verify_export(tmp_path / "export.jsonl", [site.identity.public])
        assert report.valid, report.reason


def test_secure_and_plain_agree_to_the_grid(federation):
    secure = federation.submit(optimiser=SGD)
    federation.run(secure)
    plan = federation.tools.jobs.load(secure).plan
    for site in federation.sites.values():
        site.trainer.trained.clear()
    plain = federation.operations.submit(request(rounds=1, optimiser=SGD))
    federation.run(plain)
    apart_D = np.abs(weights(federation, secure) - weights(federation, plain))
    bound = len(NAMES) * FixedPoint.of(plan).step / 2 / plan.divisor
    assert apart_D.max() <= bound + 1e-6 * np.abs(weights(federation, plain)).max()
    assert apart_D.max() > 0  # two ways of the same noise, not one


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    "dropped",
    [pytest.param(("north",), marks=pytest.mark.slow), ("north", "york")],
    ids=["one", "two"],
)
def test_the_sum_is_had_when_sites_drop_at(federation, stage, dropped):
    for site in dropped:
        federation.link.mute[site] = LATER[stage]
    job = federation.submit(quorum=3, honest_sites=3, optimiser=SGD)
    status = federation.run(job)
    assert status.state == "released"
    survivors = survivors_without(dropped, stage)
    check_sum(federation, job, survivors)
    (entry,) = federation.ledger_events("round.aggregated")
    assert entry["admitted"] == sorted(survivors)
    if stage == "secure-round":
        assert federation.sites["east"].events("sum.unmasked")[0]["dropped"] == sorted(dropped)


@pytest.mark.parametrize("stage", SLOW_BUT_ONE)
def test_below_the_threshold_nothing_is_released_and_nothing_unmasked_when_sites_drop_at(
    federation, stage
):
    for site in ("north", "west", "york"):
        federation.link.mute[site] = LATER[stage]
    job = federation.submit(quorum=3, honest_sites=3)
    status = federation.run(job)
    assert (status.state, status.rounds_done) == ("abandoned", 0)
    assert status.reason
    asked = {parcel.kind for _, parcel, _ in federation.link.carried}
    # Shares of masks leave a site only once a threshold has confirmed the survivors.
    assert ("secure-unmask" in asked) == (stage == "secure-unmask")
    # A site has trained only where masks for it could be made.
    trained = {name for name in NAMES if federation.sites[name].trainer.trained}
    early = stage in ("secure-keys", "secure-shares")
    assert trained == (set() if early else set(survivors_without({"north", "west", "york"}, stage)))


@pytest.mark.parametrize("kind", SLOW_BUT_ONE)
def test_a_site_that_restarts_before(federation, kind):
    """A restarted site has lost its masks: it is out of the round, and drawn once at most."""
    north = federation.sites["north"]

    class Restarting:
        def __call__(self, parcel):
            if parcel.kind == kind and not north.events("restarted"):
                north.restart()
                north.ledger.append("restarted", {})
            return type(north).__call__(north, parcel)

    federation.link.sites = {**federation.sites, "north": Restarting()}
    job = federation.submit(quorum=4, honest_sites=3, optimiser=SGD)
    status = federation.run(job)
    assert status.state == "released"
    dropped = () if kind == "secure-keys" else ("north",)
    check_sum(federation, job, survivors_without(dropped, kind))
    refusals = [entry["code"] for entry in north.events("parcel.refused")]
    assert set(refusals) == ({"secure-session"} if dropped else set())


def test_an_order_repeated_after_a_restart_gets_the_same_masked_bytes(federation):
    job = federation.submit(quorum=4, honest_sites=3)
    federation.run(job)
    site, order, update = next(
        one for one in federation.link.carried if one[1].kind == "secure-round"
    )
    federation.sites[site].restart()
    assert federation.sites[site](order) == update


def test_a_coordinator_killed_at_every_stage_goes_on_to_the_same_sum(federation, tmp_path):
    job = federation.submit(quorum=4, honest_sites=3, optimiser=SGD)
    federation.link.mute["york"] = LATER["secure-round"]
    for kind in STAGES:
        federation.step_until(job, kind)  # and this loop is never used again
        tools, engine = make_tools(tmp_path, federation.identity, federation.clock)
        federation.engine.dispose()
        federation.tools, federation.engine = tools, engine
    JobLoop(job, federation.tools, federation.link).run(federation.clock.wait)
    check_sum(federation, job, survivors_without(("york",), "secure-round"))


@pytest.mark.parametrize(
    "stage",
    [pytest.param(s, marks=pytest.mark.slow) for s in ("secure-keys", "secure-round")]
    + ["secure-confirm"],
)
def test_an_abandoned_round_is_resumed_with_the_same_masks(federation, stage):
    for site in ("north", "west", "york"):
        federation.link.mute[site] = LATER[stage]
    job = federation.submit(quorum=3, honest_sites=3, optimiser=SGD)
    assert federation.run(job).state == "abandoned"
    federation.link.mute.clear()
    federation.operations.resume(job)
    assert federation.run(job).state == "released"
    check_sum(federation, job, NAMES)
    for site in federation.sites.values():
        assert len(site.events("round.trained")) == 1


def test_a_refused_step_takes_the_site_out_and_a_hostile_one_into_quarantine(federation):
    def forge(parcel):
        if parcel.kind != "keys":
            return parcel
        forged = parcel.statement.replace(b'"sig":"', b'"sig":"A')
        return dataclasses.replace(parcel, statement=forged)

    federation.sites["north"].spoil = forge
    job = federation.submit(quorum=4, honest_sites=3, optimiser=SGD)
    status = federation.run(job)
    assert status.state == "released"
    assert status.updates_refused == {"secure-signature": 1}
    assert federation.tools.registry.sites()[1].quarantine_code == "secure-signature"
    check_sum(federation, job, survivors_without(("north",), "secure-round"))


def test_the_threaded_link_carries_it_too(federation):
    link = LocalLink(federation.sites)
    job = federation.submit(optimiser=SGD, deadline_s=60.0)
    loop = JobLoop(job, federation.tools, link)
    loop.run(lambda _: False)
    link.close()
    check_sum(federation, job, NAMES)


def test_a_secure_round_is_kept_in_postgresql_too(tmp_path, new_postgres):
    """Coordinator and sites each on PostgreSQL; a site drops out, and both sides start again."""
    federation = SecureFederation(tmp_path, new_url=new_postgres)
    try:
        federation.link.mute["york"] = LATER["secure-round"]
        job = federation.submit(quorum=4, honest_sites=3, optimiser=SGD)
        federation.step_until(job, "secure-confirm")
        url = federation.engine.url.render_as_string(hide_password=False)
        federation.engine.dispose()
        federation.tools, federation.engine = make_tools(
            tmp_path, federation.identity, federation.clock, url
        )
        JobLoop(job, federation.tools, federation.link).run(federation.clock.wait)
        check_sum(federation, job, survivors_without(("york",), "secure-round"))
        with federation.engine.connect() as connection:
            assert connection.dialect.name == "postgresql"
            steps = connection.exec_driver_sql("SELECT DISTINCT step FROM secure_answer").scalars()
            assert list(steps) == ["secure-confirm"]
        # The keys of the other sites, pinned at the plan, outlast a site's process.
        east = federation.sites["east"]
        east.restart()
        assert east.engine.dialect.name == "postgresql"
        assert [e["survivors"] for e in east.events("sum.unmasked")] == [
            ["east", "north", "south", "west"]
        ]
    finally:
        federation.close()


def test_only_confirmations_outlast_the_round(federation):
    job = federation.submit()
    federation.run(job)
    with federation.engine.connect() as connection:
        steps = connection.exec_driver_sql("SELECT DISTINCT step FROM secure_answer").scalars()
        assert list(steps) == ["secure-confirm"]
        kept = connection.exec_driver_sql('SELECT count(payload) FROM "update"').scalar()
    assert kept == 0


def test_an_implausible_sum_is_not_stepped_by(federation):
    honest = federation.sites["north"].trainer.sum_D
    federation.sites["north"].trainer.sum_D = lambda plan, round_: honest(plan, round_) + 1e6
    job = federation.submit()
    status = federation.run(job)
    assert status.state == "abandoned"
    assert "sum-implausible" in status.reason
    assert not weights(federation, job).any()


def test_every_parcel_that_left_has_its_receipt(federation):
    job = federation.submit()
    federation.run(job)
    receipts = federation.sites["north"].folder.rglob("*.statement.json")
    kept = {path.read_bytes() for path in receipts}
    left = {reply.statement for site, _, reply in federation.link.carried if site == "north"}
    assert len(left) == 7
    assert left <= kept


def test_a_plan_is_refused_where_it_could_not_hold_what_it_promises(federation):
    from privacy.errors import PlanError

    for wrong in ({"quorum": 3, "honest_sites": 2}, {"quorum": 2, "honest_sites": 2}):
        with pytest.raises(PlanError):
            federation.submit(**wrong)
