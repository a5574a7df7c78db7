"""Releases at the coordinator: held, published, offered, withdrawn; their bytes and their card."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
import yaml

from coordinator.admin_api import create_admin_app
from coordinator.errors import CoordinatorError
from coordinator.job import POLL_S, JobLoop
from coordinator.release import ADAPTER_FILE, CARD_FILE, MANIFEST_FILE, Labels, manifest_sha256
from coordinator.release_delivery import HEAD_RETRY_S, ReleaseDelivery
from privacy.parcel import Measured, ReleaseEvaluation, ReleaseManifest
from privacy.signing import open_as
from tests.coordinator.fakes import FakeSite, Federation, StepLink, make_tools, request, token_of
from tests.coordinator.release_bytes import release_hashes

ROOT = Path(__file__).parents[2]
MEASURED = ReleaseEvaluation("d" * 64, 12, (Measured("wer", 0.5, 0.25),))


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


@pytest.fixture
def link(federation):
    return StepLink(federation.sites)


def run(federation, link, **changes) -> str:
    """A job of one round, run to its end; its release's name."""
    job = federation.operations.submit(request(**({"rounds": 1} | changes)))
    JobLoop(job, federation.tools, link).run(federation.clock.wait)
    assert federation.operations.status(job).state == "released"
    return federation.operations.status(job).release


def deliver(federation, link, steps: int = 6) -> None:
    delivery = ReleaseDelivery(federation.tools, link)
    for _ in range(steps):
        delivery.step()


def states(federation) -> dict[str, str]:
    lines = federation.operations.releases.overview()
    return {one.release: "current" if one.current else one.state for one in lines}


def manifest_of(federation, release: str) -> ReleaseManifest:
    statement = federation.tools.releases.load(release).statement
    return open_as(ReleaseManifest, statement, (federation.identity.public,))


def events(federation, kind):
    return [e.fields for e in federation.tools.journal.ledger.entries() if e.kind == kind]


def test_a_job_publishes_its_release_unless_it_was_asked_to_hold_it(federation, link):
    first = run(federation, link)
    assert states(federation) == {first: "current"}
    sent = len(link.sent)
    held = run(federation, link, hold=True)
    assert states(federation) == {first: "current", held: "held"}
    deliver(federation, link)
    assert "release" not in {kind for _, kind in link.sent[sent:]}
    assert "offer" not in {kind for _, kind in link.sent}


def test_a_published_release_is_offered_to_every_site_and_names_its_parent(federation, link):
    first = run(federation, link)
    held = run(federation, link, hold=True)
    federation.operations.releases.publish(held)
    assert states(federation) == {first: "published", held: "current"}
    deliver(federation, link)
    for site in federation.sites.values():
        assert [one.release for one in site.released] == [first, held]
    manifest = manifest_of(federation, held)
    assert (manifest_of(federation, first).parent, manifest.parent) == (None, first)
    parent = federation.tools.releases.load(first).statement
    assert manifest.parent_sha256 == manifest_sha256(parent, federation.identity.public)
    answers = federation.operations.releases.show(held).answers
    assert [(one.site, one.code) for one in answers] == [(s, "ok") for s in federation.sites]
    count = len(link.sent)
    deliver(federation, link)
    assert len(link.sent) == count  # nobody is told twice


def test_only_a_held_release_can_be_published_and_only_once(federation, link):
    release = run(federation, link, hold=True)
    federation.operations.releases.publish(release)
    for name, code in ((release, "release-published"), ("nothing", "release-unknown")):
        with pytest.raises(CoordinatorError) as caught:
            federation.operations.releases.publish(name)
        assert caught.value.code == code
    federation.operations.releases.withdraw(release, "worse-on-terms")
    with pytest.raises(CoordinatorError) as caught:
        federation.operations.releases.publish(release)
    assert caught.value.code == "release-withdrawn"


def test_a_withdrawn_release_leaves_the_one_before_it_current_and_every_site_is_told(
    federation, link
):
    first, second = run(federation, link), run(federation, link)
    federation.operations.releases.withdraw(second, "worse-on-terms")
    assert states(federation) == {first: "current", second: "withdrawn"}
    deliver(federation, link)
    for site in federation.sites.values():
        assert site.withdrawn == [(second, "worse-on-terms")]
        assert [one.release for one in site.released] == [first, second]  # it has the first still
    (told,) = events(federation, "release.withdrawn")
    assert (told["release"], told["code"]) == (second, "worse-on-terms")
    answered = [fields["site"] for fields in events(federation, "withdrawal.answered")]
    assert answered == sorted(federation.sites)
    with pytest.raises(CoordinatorError) as caught:
        federation.operations.releases.withdraw(second, "again")
    assert caught.value.code == "release-withdrawn"


def test_a_site_that_was_away_hears_at_its_next_contact(federation, link):
    link.offline = {"west"}
    release = run(federation, link, quorum=2, deadline_s=5.0)
    federation.operations.releases.withdraw(release, "worse")
    deliver(federation, link)
    west = federation.sites["west"]
    assert west.withdrawn == []
    link.offline = set()
    deliver(federation, link)
    assert west.withdrawn == [(release, "worse")]
    assert west.released == []


@pytest.mark.parametrize("hold", [False, True])
def test_a_site_enrolled_later_is_offered_the_current_release(federation, link, hold):
    release = run(federation, link, hold=hold)
    if hold:
        federation.operations.releases.publish(release)
    late = FakeSite("york", federation.identity.public)
    invite = federation.operations.invite("york", 3600)
    federation.operations.enrol(late.enrolment(token_of(invite, federation.identity.public)))
    federation.sites["york"] = late
    deliver(federation, link)
    assert late.released == []  # nobody has approved it yet
    federation.operations.approve("york")
    deliver(federation, link)
    assert [one.release for one in late.released] == [release]


def test_a_site_that_refused_the_plan_is_not_offered_its_release(federation, link):
    federation.sites["north"].veto = "policy-noise"
    run(federation, link, quorum=2)
    deliver(federation, link)
    assert federation.sites["north"].released == []


def test_a_withdrawal_reaches_sites_within_a_job_and_an_offer_waits_for_its_end(federation, link):
    held = run(federation, link, hold=True)
    first = run(federation, link)
    federation.operations.releases.publish(held)
    job = federation.operations.submit(request())
    loop, delivery = JobLoop(job, federation.tools, link), ReleaseDelivery(federation.tools, link)
    federation.operations.releases.withdraw(first, "worse")
    while not loop.step():
        delivery.step()
        federation.clock.wait(POLL_S)
        assert "offer" not in {kind for _, kind in link.sent}
    for site in federation.sites.values():
        assert site.withdrawn == [(first, "worse")]
    kinds = [kind for site, kind in link.sent if site == "east"]
    assert kinds.index("withdraw") < len(kinds) - 1 - kinds[::-1].index("round")


def test_a_refusal_is_kept_with_its_code_and_not_asked_again(federation, link):
    link.offline = {"west"}
    release = run(federation, link, quorum=2, deadline_s=5.0)
    link.offline = set()
    west = federation.sites["west"]
    link.sites = federation.sites | {
        "west": lambda _: west.answer("refused", "", "", "release-canary")
    }
    deliver(federation, link)
    answers = federation.operations.releases.show(release).answers
    assert {one.site: one.code for one in answers}["west"] == "release-canary"
    assert [kind for site, kind in link.sent if site == "west"].count("offer") == 1
    assert {
        one.release: one.sites_refused for one in federation.operations.releases.overview()
    } == {release: 1}


def test_a_refusal_of_our_ledgers_head_is_asked_again_later(federation, link):
    link.offline = {"west"}
    release = run(federation, link, quorum=2, deadline_s=5.0)
    link.offline, west = set(), federation.sites["west"]
    refusing = {"west": lambda _: west.answer("refused", "", "", "peer-head-smaller")}
    link.sites = federation.sites | refusing
    delivery = ReleaseDelivery(federation.tools, link)
    for _ in range(5):
        delivery.step()
    assert [kind for site, kind in link.sent if site == "west"] == ["offer"]
    link.sites = federation.sites
    federation.clock.now_s += HEAD_RETRY_S
    for _ in range(3):
        delivery.step()
    assert [one.release for one in west.released] == [release]


def test_a_coordinator_killed_before_the_answer_asks_again(federation, link, tmp_path):
    run(federation, link)
    held = run(federation, link, hold=True)
    federation.operations.releases.publish(held)
    link.silent = set(federation.sites)
    deliver(federation, link)
    federation.engine.dispose()
    federation.tools, federation.engine = make_tools(
        tmp_path, federation.identity, federation.clock
    )
    deliver(federation, StepLink(federation.sites))
    assert all(site.released[-1].release == held for site in federation.sites.values())


def test_what_is_measured_is_signed_and_publishing_may_measure_anew(federation, link):
    seen = []

    def evaluate(base_folder, adapter):
        seen.append((base_folder, hashlib.sha256(adapter).hexdigest()))
        return MEASURED

    federation.tools = dataclasses.replace(
        federation.tools, evaluate=evaluate, labels=Labels("mit", "openai/whisper-tiny.en")
    )
    federation.operations = dataclasses.replace(federation.operations, tools=federation.tools)
    release = run(federation, link, hold=True)
    manifest = manifest_of(federation, release)
    assert seen == [(Path("base"), manifest.adapter_sha256)]
    assert (manifest.evaluation, manifest.license) == (MEASURED, "mit")
    better = dataclasses.replace(MEASURED, measured=(Measured("wer", 0.5, 0.125),))
    federation.operations.releases.publish(release, better)
    assert manifest_of(federation, release).evaluation == better


def card_of(federation, release: str) -> tuple[dict, str]:
    text = (federation.tools.releases_folder / release / CARD_FILE).read_text()
    assert text == federation.operations.releases.show(release).card
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_the_card_is_one_that_the_hub_reads_and_states_the_guarantee(federation, link):
    federation.tools = dataclasses.replace(
        federation.tools,
        evaluate=lambda *_: MEASURED,
        labels=Labels("mit", "openai/whisper-tiny.en"),
    )
    federation.operations = dataclasses.replace(federation.operations, tools=federation.tools)
    release = run(federation, link)
    metadata, body = card_of(federation, release)
    assert metadata["license"] == "mit"
    assert metadata["base_model"] == "openai/whisper-tiny.en"
    assert metadata["library_name"] == "peft"
    assert metadata["metrics"] == ["wer"]
    (result,) = metadata["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "wer", "value": 0.25}]
    assert result["dataset"]["revision"] == MEASURED.data_sha256
    manifest = manifest_of(federation, release)
    assert f"| {manifest.epsilon_loc:.3f} at δ = 1e-06 |" in body
    assert f"{manifest.epsilon_sec:.3f} at δ = 1e-06, if h = 2 sites are honest" in body
    assert "one subject more or less at one site" in body
    assert "so against it only ε_loc holds" in body
    assert "| wer | 0.5000 | 0.2500 |" in body
    for digest in (manifest.plan_sha256, manifest.base_sha256, manifest.tree_head):
        assert digest in body


def test_the_card_of_a_release_without_noise_claims_nothing(federation, link):
    release = run(federation, link, privacy_mode="none", noise_multiplier=None)
    _, body = card_of(federation, release)
    assert "**None.**" in body
    assert "| ε_loc, against everybody | unbounded" in body
    assert "Nothing was measured" in body


def test_operators_reach_every_verb_by_the_admin_api(federation, link):
    release = run(federation, link, hold=True)
    app = create_admin_app(federation.operations, "token")

    async def conversation() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://admin") as client:
            assert (await client.get("/admin/releases")).status_code == 401
            client.headers["Authorization"] = "Bearer token"
            (line,) = (await client.get("/admin/releases")).json()
            assert (line["release"], line["state"]) == (release, "held")
            at = f"/admin/releases/{release}"
            adapter = (await client.get(f"{at}/adapter")).content
            body = {"evaluation": dataclasses.asdict(MEASURED)}
            assert (await client.post(f"{at}/publish", json=body)).status_code == 204
            view = (await client.get(at)).json()
            assert view["manifest"]["adapter_sha256"] == hashlib.sha256(adapter).hexdigest()
            assert view["manifest"]["evaluation"]["measured"][0]["release"] == 0.25
            assert [state for state, _, _ in view["history"]] == ["held", "published"]
            bad = await client.post(f"{at}/withdraw", json={"code": "Bad words!"})
            assert bad.json()["code"] == "reason-malformed"
            done = await client.post(f"{at}/withdraw", json={"code": "worse"})
            assert done.status_code == 204
            assert (await client.get("/admin/releases/unknown")).status_code == 404

    asyncio.run(conversation())


def test_two_processes_make_the_same_bytes_of_the_same_release(federation, tmp_path):
    key = tmp_path / "key.pem"
    federation.identity.save(key)
    here = release_hashes(tmp_path / "here", key)
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
    module = "tests.coordinator.release_bytes"
    command = [sys.executable, "-m", module, str(tmp_path / "there"), str(key)]
    done = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == here
    assert set(here) == {ADAPTER_FILE, MANIFEST_FILE, CARD_FILE}
