"""Real processes over TLS, and one site's network fails in mid-round: nothing is lost or doubled.

Made once by `network_story`; each act is a job of one round that all three sites must be in.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from deploy.ledgers import open_ledger, verify_home
from privacy.receipt import read_receipts
from tests.e2e.federation_run import SITES, WATCHED

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROOT = Path(__file__).parents[2]
LIMIT_S = 900.0
ONCE = ("budget.reserved", "round.trained", "update.sealed")


@dataclasses.dataclass(frozen=True)
class Story:
    """What the story left; every process of it has ended."""

    root: Path
    outcome: dict[str, Any]

    def assert_nothing_lost_or_doubled(self, act: str) -> None:
        """The watched site was waited for, and its one update is in the one round, once."""
        waiting, end = self.outcome[act]["waiting"], self.outcome[act]["end"]
        assert waiting["latest_rounds"][0]["stragglers"] in ([], [WATCHED])
        assert (end["state"], end["updates_admitted"]) == ("released", len(SITES)), end["reason"]
        job = end["job"]
        home = self.root / "sites" / WATCHED
        entries = [e for e in open_ledger(home).entries() if e.fields.get("job") == job]
        kinds = Counter(entry.kind for entry in entries)
        assert [kinds[kind] for kind in ONCE] == [1, 1, 1]
        (sealed,) = [entry.fields for entry in entries if entry.kind == "update.sealed"]
        receipts = read_receipts(home / "receipts")
        (receipt,) = [one for one in receipts if (one.job, one.kind) == (job, "update")]
        (taken,) = [
            entry.fields
            for entry in open_ledger(self.root / "coordinator").entries()
            if entry.kind == "update.answered"
            and (entry.fields["job"], entry.fields["site"]) == (job, WATCHED)
        ]
        assert taken["code"] == "admitted"
        assert taken["payload_sha256"] == sealed["payload_sha256"] == receipt.sha256


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    root = tmp_path_factory.mktemp("network")
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.network_story", str(root)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Story(root, json.loads((root / "outcome.json").read_text()))


def test_a_network_cut_in_mid_upload_loses_and_doubles_nothing(story: Story) -> None:
    story.assert_nothing_lost_or_doubled("cut")


def test_a_black_holed_upload_loses_and_doubles_nothing(story: Story) -> None:
    story.assert_nothing_lost_or_doubled("black_hole")


def test_a_slow_line_is_waited_for_and_its_site_is_in_the_round(story: Story) -> None:
    waiting = story.outcome["slow"]["waiting"]
    assert waiting["latest_rounds"][0]["stragglers"] == [WATCHED]
    story.assert_nothing_lost_or_doubled("slow")


def test_a_site_killed_in_mid_upload_sends_the_same_bytes_and_spends_once(story: Story) -> None:
    story.assert_nothing_lost_or_doubled("killed_mid_upload")


@pytest.mark.parametrize("party", ["coordinator", *SITES])
def test_every_ledger_verifies_after_the_networks_faults(story: Story, party: str) -> None:
    home = story.root / "coordinator" if party == "coordinator" else story.root / "sites" / party
    report = verify_home(home)[0]
    assert report.valid, report.reason
