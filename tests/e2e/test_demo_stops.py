"""`auricle demo`, told to stop in the middle, leaves no process behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from client_node.home import SiteHome
from tests.e2e.conftest import ROOT, marked_processes, watched_environment
from tests.e2e.recordings import tone, write_wav

LIMIT_S = 400.0
SITES = ("bank", "clinic")
EXIT_INTERRUPTED = 130
SITES_START = "client_node.supernode"
ROUNDS_RUN = "round 1/"


def write_recordings(folder: Path) -> Path:
    """Two sites of three subjects each, as `auricle demo --recordings` takes them."""
    lines = []
    for index in range(3 * len(SITES)):
        audio = write_wav(folder / f"{index}.wav", tone(200.0 + 50 * index))
        fields = {"audio": audio.name, "text": "one tone", "subject": f"subject-{index}"}
        lines.append(json.dumps(fields | {"site": SITES[index % len(SITES)]}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("sign", [SITES_START, ROUNDS_RUN])
def test_a_terminated_demo_leaves_no_process_behind(tmp_path: Path, sign: str) -> None:
    watch = tmp_path / "watch.log"
    recordings = write_recordings(tmp_path / "recordings")
    command = ["demo", "--folder", tmp_path / "demo", "--recordings", recordings]
    with (tmp_path / "demo.log").open("wb") as log:
        demo = subprocess.Popen(
            [sys.executable, "-m", "deploy.cli.main", *map(str, command), "--quick", "--json"],
            cwd=ROOT,
            env=watched_environment(watch),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await_sign(demo, {"watch": watch, "log": tmp_path / "demo.log"}, sign)
        stopped = marked_processes(watch)
        assert len(stopped) >= 2 + 2 * len(SITES)  # demo, coordinator, services, SuperNodes
        demo.send_signal(signal.SIGTERM)
        assert demo.wait(LIMIT_S) == EXIT_INTERRUPTED
        assert marked_processes(watch) == []
    finally:
        for process in marked_processes(watch):
            process.kill()
        demo.wait()
    homes = (tmp_path / "demo" / "runs").glob("*/sites/*")
    assert {home.name for home in homes if SiteHome(home).enrolled} == set(SITES)


def await_sign(demo: subprocess.Popen[bytes], files: dict[str, Path], sign: str) -> None:
    """Wait until the sites' SuperNodes have started, or the first round is done."""
    file, times = {SITES_START: ("watch", len(SITES)), ROUNDS_RUN: ("log", 1)}[sign]
    end, pause = time.monotonic() + LIMIT_S, threading.Event()
    while sum(sign in line for line in lines_of(files[file])) < times:
        assert demo.poll() is None, "the demo ended by itself"
        assert time.monotonic() < end, f"nothing said {sign!r}"
        pause.wait(0.05)


def lines_of(watch: Path) -> list[str]:
    return watch.read_text().splitlines() if watch.exists() else []
