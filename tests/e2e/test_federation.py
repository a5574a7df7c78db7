"""A federation as its parties find it afterwards: release, ledgers, ε, restart, budget."""

from __future__ import annotations

import json
from typing import Any

import pytest

from deploy.cli import main as cli
from privacy.receipt import read_receipts
from tests.e2e.conftest import Federation
from tests.e2e.federation_run import EPSILON_CAP, PURPOSE, ROUNDS, SITES, WATCHED

PARTIES = ("coordinator", *SITES)


def shown(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """What a command prints with --json."""
    assert cli.run([*words, "--json"]) == 0
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


@pytest.mark.parametrize("name", ["first", "restarted"])
def test_the_release_is_activated_at_every_site(federation: Federation, name: str) -> None:
    job = federation.outcome[name]
    assert (job["state"], job["rounds_done"]) == ("released", ROUNDS)
    assert {site["site"]: site["release_code"] for site in job["sites"]} == dict.fromkeys(
        SITES, "ok"
    )
    for site in SITES:
        activated = federation.entries(site, "release.activated", job["job"])
        assert [entry.fields["release"] for entry in activated] == [job["release"]]


@pytest.mark.parametrize("party", PARTIES)
def test_the_ledger_verifies(
    federation: Federation, party: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = shown(capsys, "ledger", "verify", "--home", str(federation.homes[party]))
    assert (report["valid"], report["first_bad"], report["key_trusted"]) == (True, None, True)
    assert report["entries"] > 2 * ROUNDS


@pytest.mark.parametrize("site", SITES)
def test_the_epsilon_that_a_site_shows_is_what_its_ledger_gives(
    federation: Federation, site: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = shown(capsys, "site", "status", "--home", str(federation.site(site)))
    (budget,) = status["budgets"]
    (derived,) = federation.report(site).epsilons
    assert (derived.purpose, derived.reserved) == (PURPOSE, 2 * ROUNDS)
    assert budget["epsilon_spent"] == pytest.approx(derived.epsilon_loc, rel=1e-9)
    assert 0 < budget["epsilon_spent"] <= budget["epsilon_cap"] == EPSILON_CAP
    assert status["release"]["release"] == federation.outcome["restarted"]["release"]


def test_a_killed_coordinator_goes_on_at_the_next_round(federation: Federation) -> None:
    killed, after = federation.outcome["killed"], federation.outcome["restarted"]
    assert (killed["state"], killed["rounds_done"], killed["round"]) == ("running", 1, 2)
    assert (after["job"], after["state"]) == (killed["job"], "released")
    steps = federation.entries("coordinator", "round.aggregated", after["job"])
    assert [entry.fields["round"] for entry in steps] == [1, 2, 3]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("name", ["first", "restarted"])
def test_no_round_is_trained_twice(federation: Federation, site: str, name: str) -> None:
    job = federation.outcome[name]["job"]
    for kind in ("budget.reserved", "round.trained", "update.sealed"):
        entries = federation.entries(site, kind, job)
        assert [entry.fields["round"] for entry in entries] == [*range(1, ROUNDS + 1)]


def test_a_repeated_order_is_answered_with_the_same_bytes(federation: Federation) -> None:
    job = federation.outcome["restarted"]["job"]
    home = federation.site(WATCHED)
    lines = (home / "logs" / "site.log").read_text().splitlines()
    answers = [json.loads(line) for line in lines]
    rounds = [one["round"] for one in answers if one["event"] == "parcel-update"]
    assert rounds == [1, 2, 3, 1, 2, 2, 3]  # round 2 of the second job was ordered again
    (receipt,) = [r for r in read_receipts(home / "receipts") if (r.job, r.round) == (job, 2)]
    (sealed,) = [
        e for e in federation.entries(WATCHED, "update.sealed", job) if e.fields["round"] == 2
    ]
    (taken,) = [
        e.fields
        for e in federation.entries("coordinator", "update.answered", job)
        if (e.fields["round"], e.fields["site"]) == (2, WATCHED)
    ]
    # The receipt and the ledger are of the first answer, what was taken is the second.
    assert taken["payload_sha256"] == receipt.sha256 == sealed.fields["payload_sha256"]
    assert taken["code"] == "admitted"


def test_a_job_that_would_pass_the_cap_is_refused_and_trains_nothing(
    federation: Federation,
) -> None:
    job = federation.outcome["over_cap"]
    assert (job["state"], job["round"], job["updates_admitted"]) == ("abandoned", 0, 0)
    codes = {site["site"]: site["plan_code"] for site in job["sites"] if site["plan_code"]}
    assert set(codes.values()) == {"budget-exceeded"}
    for site in codes:
        assert f"{site} refused (budget-exceeded)" in job["reason"]
    for site in SITES:
        for kind in ("plan.accepted", "budget.reserved", "round.trained", "update.sealed"):
            assert federation.entries(site, kind, job["job"]) == []
        refused = federation.entries(site, "parcel.refused", job["job"])
        assert {entry.fields["code"] for entry in refused} <= {"budget-exceeded"}
        assert bool(refused) or site not in codes
