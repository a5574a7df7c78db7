"""`auricle demo`, told to stop in the middle, leaves no process behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from client_node.home import SiteHome
from model_core.nano import write_nano_checkpoint
from tests.e2e.conftest import ROOT, marked_processes, watched_environment
from tests.e2e.recordings import tone, write_wav

LIMIT_S = 120.0
SITES = ("bank", "clinic")
EXIT_INTERRUPTED = 130


def write_recordings(folder: Path) -> Path:
    """Two sites of three subjects each, as `auricle demo --recordings` takes them."""
    lines = []
    for index in range(3 * len(SITES)):
        audio = write_wav(folder / f"{index}.wav", tone(200.0 + 50 * index))
        fields = {"audio": audio.name, "text": "one tone", "subject": f"subject-{index}"}
        lines.append(json.dumps(fields | {"site": SITES[index % len(SITES)]}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines))
    return folder


def test_a_terminated_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    watch = tmp_path / "watch.log"
    recordings = write_recordings(tmp_path / "recordings")
    base = write_nano_checkpoint(tmp_path / "checkpoint")
    command = ["demo", "--folder", tmp_path / "demo", "--recordings", recordings, "--base", base]
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
        await_connections(demo, watch)
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


def await_connections(demo: subprocess.Popen[bytes], watch: Path) -> None:
    """Wait until each site's SuperNode runs."""
    end, pause = time.monotonic() + LIMIT_S, threading.Event()
    while sum("client_node.supernode" in line for line in lines_of(watch)) < len(SITES):
        assert demo.poll() is None, "the demo ended by itself"
        assert time.monotonic() < end, "the sites did not start"
        pause.wait(0.05)


def lines_of(watch: Path) -> list[str]:
    return watch.read_text().splitlines() if watch.exists() else []
