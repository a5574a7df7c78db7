"""No room on the disk at one step of a round: told, nothing lost, and on it goes with room."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.full_disk import NAMESPACE

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROOT = Path(__file__).parents[2]


def mounting_works() -> bool:
    """Whether this account may mount a tmpfs in a namespace of its own."""
    if shutil.which(NAMESPACE[0]) is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> None:
    if not mounting_works():
        pytest.skip("this account may not mount a tmpfs: no disk here can be filled")


def story(step: str, folder: Path) -> dict[str, Any]:
    command = [*NAMESPACE, sys.executable, "-m", "tests.faults.full_disk", step, str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def test_a_disk_full_at_the_sites_ledger_draws_nothing_and_trains_once_there_is_room(
    tmp_path: Path,
) -> None:
    told = story("ledger", tmp_path)
    assert (told["full"], told["drawn_full"]) == ("stopped: database-full", 0)
    assert (told["after"], told["next"]) == ("update", "update")
    assert (told["drawn"], told["reserved"], told["committed"]) == (2, 0, 2)
    assert told["ledger"]


def test_a_disk_full_at_the_sites_update_counts_the_round_as_spent_and_goes_on(
    tmp_path: Path,
) -> None:
    told = story("update", tmp_path)
    assert (told["full"], told["drawn_full"]) == ("stopped: database-full", 1)
    assert (told["after"], told["next"]) == ("round-interrupted", "update")
    assert (told["drawn"], told["reserved"], told["committed"]) == (2, 1, 1)
    assert told["ledger"]


def test_a_disk_full_at_a_release_leaves_what_serves_and_activates_once_there_is_room(
    tmp_path: Path,
) -> None:
    told = story("release", tmp_path)
    assert (told["full"], told["active_full"]) == ("stopped: database-full", None)
    assert (told["after"], told["active_after"]) == ("activated", "r-one")
    assert told["ledger"]


@pytest.mark.parametrize("step", ["coordinator ledger", "coordinator release"])
def test_a_disk_full_at_the_coordinator_stops_it_in_words_and_the_job_ends_once_there_is_room(
    tmp_path: Path, step: str
) -> None:
    told = story(step, tmp_path)
    assert told == {
        "full": "stopped: database-full",
        "state": "released",
        "admitted": 6,
        "released": True,
    }
