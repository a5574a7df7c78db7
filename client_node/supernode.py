"""Flower's SuperNode as a child process of the site.

It is its own process because flwr installs signal handlers and interrupts the whole process on an
HTTP 401 (a revoked node). `--isolation process` keeps remote code out: the SuperNode only carries
messages, our worker (`client_node.flower_worker`) answers them with installed code. This module is
also that process's entry point, where Flower's fixed polling intervals (3 s and 0.5 s in flwr 1.41)
are replaced, since they would dominate the time of a round: the coordinator holds a question open
until it has a message (`coordinator.fleet_gate`), and so is the worker's question for a task here.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from client_node.home import SiteHome, SiteSettings

LOOPBACK = "127.0.0.1"
STOP_TIMEOUT_S = 10.0
ANSWER_POLL_S = 0.02  # between two looks into this process's own memory
HOLD_S = 1.0  # the worker's question, and so the longest that stopping it takes
_FLWR_IDLE_S = 3.0  # what flwr sleeps when the coordinator had no message
_LOG_SIZE_BYTES = 4 * 2**20
_POLL_VARIABLE = "AURICLE_SUPERNODE_POLL_S"
_PARENT_VARIABLE = "AURICLE_SUPERNODE_PARENT"
OFFLINE_ENVIRONMENT = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}


def free_port() -> int:
    """A loopback TCP port that is free now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def start_supernode(home: SiteHome, settings: SiteSettings, port: int) -> subprocess.Popen[bytes]:
    """Start the SuperNode; its Runtime API listens on loopback `port`.

    Its output goes to `logs/supernode.log`: Flower's message ids, and nothing of the site's, since
    no recording, transcript or subject ever reaches that process. A log above 4 MiB becomes
    `supernode.log.1`, in place of the one before it.
    """
    path = home.logs / "supernode.log"
    if path.exists() and path.stat().st_size > _LOG_SIZE_BYTES:
        path.replace(path.with_name("supernode.log.1"))
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        return subprocess.Popen(
            [sys.executable, "-m", "client_node.supernode", *_arguments(home, settings, port)],
            env=_environment(home, settings),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            # Ctrl-C in a terminal reaches the service, which then stops the SuperNode in order.
            start_new_session=True,
        )
    finally:
        os.close(log)


def stop_supernode(process: subprocess.Popen[bytes]) -> None:
    """End the SuperNode: politely, then by force after `STOP_TIMEOUT_S`."""
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _arguments(home: SiteHome, settings: SiteSettings, port: int) -> list[str]:
    address = urlsplit(settings.coordinator_url).netloc
    return [
        *("--superlink", address),
        *("--root-certificates", str(home.ca)),
        *("--auth-supernode-private-key", str(home.node_key)),
        *("--isolation", "process"),
        *("--superexec-auth-secret-file", str(home.runtime_secret)),
        *("--host", LOOPBACK),
        *("--port", str(port)),
    ]


def _environment(home: SiteHome, settings: SiteSettings) -> dict[str, str]:
    # flwr runs its tools by bare name, so the interpreter's folder must come first on PATH.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {
        **os.environ,
        **OFFLINE_ENVIRONMENT,
        "PATH": path,
        "PYTHONUNBUFFERED": "1",
        "FLWR_HOME": str(home.root / "flower"),
        _POLL_VARIABLE: str(settings.poll_s),
        _PARENT_VARIABLE: str(os.getpid()),
    }


def paced_sleep(
    poll_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> Callable[[float], None]:
    """A sleep for flwr's loop, whatever time it asks for.

    Between two questions to the coordinator at least `poll_s` seconds pass; one that was held open
    for longer needs no pause after it. For the worker it looks every `ANSWER_POLL_S`.
    """
    asked_at_s = clock()

    def short_sleep(duration_s: float) -> None:
        nonlocal asked_at_s
        if duration_s < _FLWR_IDLE_S:
            sleep(ANSWER_POLL_S)
            return
        sleep(max(0.0, asked_at_s + poll_s - clock()))
        asked_at_s = clock()

    return short_sleep


def held_open(
    acquire: Callable[..., Any],
    hold_s: float,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> Callable[..., Any]:
    """flwr's handler of a worker's question for a task, which waits up to `hold_s` for one."""

    def acquire_task(request: Any, state: Any) -> Any:
        until_s = clock() + hold_s
        while not (response := acquire(request, state)).token and clock() < until_s:
            sleep(ANSWER_POLL_S)
        return response

    return acquire_task


def main() -> None:
    """Entry point of the child process: SuperNode that waits no longer than it must.

    It ends with its parent.
    """
    import flwr.supernode.start_client_internal as loop
    from flwr.supercore.app_utils import start_parent_process_monitor
    from flwr.supernode.cli.flower_supernode import flower_supernode
    from flwr.supernode.servicer.runtime import runtime_handlers

    poll_s = float(os.environ[_POLL_VARIABLE])
    # Also an object that the coordinator is still storing is asked for again sooner than flwr does.
    loop.pull_objects = functools.partial(loop.pull_objects, initial_backoff=poll_s)
    pause = paced_sleep(poll_s, time.monotonic, time.sleep)
    loop.time = types.SimpleNamespace(sleep=pause, time=time.time)
    runtime_handlers.acquire_task = held_open(
        runtime_handlers.acquire_task, HOLD_S, time.monotonic, time.sleep
    )
    start_parent_process_monitor(int(os.environ[_PARENT_VARIABLE]))
    try:
        flower_supernode()
    except Exception:
        logging.getLogger(__name__).exception("the SuperNode failed")
        # flwr leaves its API thread running, so that a failed process would look alive for ever.
        os._exit(1)


if __name__ == "__main__":
    main()
