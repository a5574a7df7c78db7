"""The contract with Flower: parcels both ways over TLS with node authentication.

A real SuperLink in this process, a real SuperNode and our warm worker in the site's processes.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.service import Coordinator
from tests.coordinator.fakes import SmallArtifacts, request

pytestmark = [
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

ROOT = Path(__file__).parents[2]
SETTINGS = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)
LIMIT_S = 90.0


@pytest.fixture
def coordinator(tmp_path):
    home = CoordinatorHome.create(
        tmp_path / "coordinator", SETTINGS, datetime.datetime.now(datetime.UTC)
    )
    running = Coordinator(home, SmallArtifacts())
    running.start()
    yield running
    running.stop()


@pytest.fixture
def site(tmp_path, coordinator, request):
    held = getattr(request, "param", [])
    invite = tmp_path / "invite.json"
    invite.write_bytes(coordinator.operations.invite("north", 600, approve=True))
    script = Path(__file__).with_name("flower_site.py")
    log = (tmp_path / "site.out").open("wb")
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "north"), str(invite), *held],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    yield process
    process.terminate()
    process.wait(20)
    log.close()


def await_state(condition, coordinator, process) -> None:
    """Wait until `condition()`; fails after LIMIT_S or when the site's process ends."""
    end = time.monotonic() + LIMIT_S
    while not condition():
        assert process is None or process.poll() is None, "the site's process ended"
        assert not coordinator.wait(0), "the coordinator asked to stop"
        assert time.monotonic() < end, "the awaited state did not come"
        time.sleep(0.02)


def test_a_job_runs_over_flower_and_revocation_cuts_the_node_off(coordinator, site):
    operations = coordinator.operations
    await_state(lambda: "north" in operations.online(), coordinator, site)
    job = operations.submit(request(rounds=5))
    await_state(lambda: operations.status(job).state == "released", coordinator, site)
    status = operations.status(job)
    assert status.updates_admitted == 5
    assert status.updates_refused == {}
    assert status.sites[0].release_code == "ok"

    operations.revoke("north")
    assert "north" not in operations.online()
    site.wait(LIMIT_S)  # its next call is answered 401, and Flower's SuperNode gives up


@pytest.mark.slow
@pytest.mark.parametrize("site", [["hold"]], indirect=True)
def test_a_site_revoked_while_it_trains_gets_nothing_more_in(coordinator, site, tmp_path):
    """Its connection is open and its update made; neither helps."""
    operations, north = coordinator.operations, tmp_path / "north"
    await_state(lambda: "north" in operations.online(), coordinator, site)
    job = operations.submit(request(rounds=1))
    await_state((north / "in-round").exists, coordinator, site)
    operations.revoke("north")
    (north / "go").touch()
    site.wait(LIMIT_S)  # the update's upload is answered 401
    await_state(lambda: operations.status(job).state == "abandoned", coordinator, None)
    status = operations.status(job)
    assert (status.updates_admitted, status.sites[0].bytes_received) == (0, 0)
    assert status.latest_rounds[0].refused == {"north": "site-inactive"}
    kinds = [entry.kind for entry in operations.tools.journal.ledger.entries()]
    assert kinds.index("site.revoked") > kinds.index("round.opened")
