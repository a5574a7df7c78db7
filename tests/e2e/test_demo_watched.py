"""The whole demo, on few speakers: what it prints, and that no process looks for another host."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, marked_processes, watched_environment
from tests.e2e.federation_run import CONTROL_HOST
from tests.e2e.namespace import UNSHARE, unshare_works

LIMIT_S = 1200.0
SITE_FIELDS = {
    *("name", "terms_before", "terms_after", "wer_before", "wer_after"),
    *("epsilon_loc", "epsilon_sec", "epsilon_cap", "bytes_sent"),
}


@pytest.mark.slow
def test_the_quick_demo_runs_whole_and_reaches_no_other_host(tmp_path: Path) -> None:
    if not unshare_works():
        pytest.skip("this account may not make network namespaces")
    watch, outcome = tmp_path / "watch.log", tmp_path / "outcome.json"
    command = [sys.executable, "-m", "tests.e2e.watched_command", str(outcome)]
    demo = ["demo", "--quick", "--json", "--folder", str(tmp_path / "demo")]
    done = subprocess.run(
        [*UNSHARE, *command, *demo],
        cwd=ROOT,
        env=watched_environment(watch),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen = json.loads(outcome.read_text())
    assert seen["status"] == 0, done.stderr[-4000:]
    shown = json.loads(seen["printed"])
    assert shown["ledger_verified"] is True
    assert shown["rounds"] > 0
    assert len(shown["sites"]) == 3
    for site in shown["sites"]:
        assert set(site) >= SITE_FIELDS
        assert 0 < site["epsilon_sec"] < site["epsilon_loc"] <= site["epsilon_cap"]
    attempts = [line for line in watch.read_text().splitlines() if line.startswith("attempt ")]
    # The one attempt is the control's, made on purpose after the demo had ended.
    assert [line.split()[:3] for line in attempts] == [["attempt", "socket.connect", CONTROL_HOST]]
    assert seen["unroutable_attempts"] == 0
    assert seen["unroutable_after_control"] > 0
    assert marked_processes(watch) == []
