"""`auricle site start`: one process that answers, one SuperNode that carries, stopped together.

The coordinator is probed over TLS before anything starts, so that an unreachable host or a wrong
CA is said in words and not left to a retry loop. SIGTERM and SIGINT end the service after the
parcel in hand; a second one ends it at once, which at worst loses a round that stays spent.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import torch

from client_node.assembly import open_agent, open_parts, utc_now
from client_node.enrol import check_coordinator
from client_node.errors import LinkError
from client_node.home import SiteHome, SiteSettings
from client_node.keys import renew_runtime_secret, trusted_coordinator
from client_node.site_log import SiteLog
from client_node.supernode import (
    LOOPBACK,
    OFFLINE_ENVIRONMENT,
    free_port,
    start_supernode,
    stop_supernode,
)
from privacy.parcel import Parcel

Notify = Callable[[str], None]
"""Told of each stage: connecting, preparing, ready, stopped."""


def run_site(
    home: SiteHome, *, stop: threading.Event | None = None, notify: Notify | None = None
) -> None:
    """Take part in rounds until `stop` is set or a signal arrives.

    Raises SiteError or LinkError where the site cannot start, LinkError ("supernode-ended") where
    the connection ends for good, and LedgerError where the ledger no longer verifies (I4).
    """
    stop = stop or threading.Event()
    stages = notify or (lambda _: None)
    log = SiteLog(home.logs, utc_now)
    try:
        with _signals_set(stop):
            _run(home, stop, stages, log)
        stages("stopped")  # in order; an error says for itself that the service has ended
    finally:
        log.event("site-stopped")
        log.close()


def _run(home: SiteHome, stop: threading.Event, stages: Notify, log: SiteLog) -> None:
    _stay_offline()
    settings = SiteSettings.load(home.settings)
    trusted_coordinator(home)
    stages("connecting")
    check_coordinator(settings.coordinator_url, home.ca.read_text(encoding="ascii"))
    if settings.threads:
        torch.set_num_threads(settings.threads)
    stages("preparing")
    parts = open_parts(home)
    agent = open_agent(parts, log)
    unusable = parts.features.prepare(parts.store.recordings("train"))
    counts = parts.store.counts()
    log.event("site-prepared", recordings=counts.recordings, unusable=unusable)

    def handle(parcel: Parcel) -> Parcel:
        reply = agent.handle(parcel)
        if agent.failure is not None:
            stop.set()
        return reply

    # Imported here, after the environment that flwr reads at import is set.
    from client_node.flower_worker import FlowerWorker

    secret, port = renew_runtime_secret(home), free_port()
    supernode = start_supernode(home, settings, port)
    try:
        threading.Thread(target=_stop_with, args=(supernode, stop), daemon=True).start()
        log.event("site-ready")
        stages("ready")
        FlowerWorker(f"{LOOPBACK}:{port}", secret, handle, agent.refuse, log).run(stop)
        if agent.failure is not None:
            raise agent.failure
        if supernode.poll() is not None:
            raise LinkError(
                "the connection to the coordinator ended: its SuperNode stopped by itself",
                remedy="read logs/supernode.log; a refused node (HTTP 401) means that the "
                "coordinator has not approved this site yet, has revoked it or lost its enrolment, "
                "or that a clock has been set since the start: `auricle doctor` compares them",
                code="supernode-ended",
            )
    finally:
        stop_supernode(supernode)


def _stop_with(process: subprocess.Popen[bytes], stop: threading.Event) -> None:
    process.wait()
    stop.set()


def _stay_offline() -> None:
    """No telemetry, no update check, and no proxy between this process and its own SuperNode."""
    os.environ.update(OFFLINE_ENVIRONMENT)
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in os.environ.get(name, "").split(",") if host]
        if LOOPBACK not in hosts:
            os.environ[name] = ",".join([*hosts, LOOPBACK])


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Within it the first SIGTERM or SIGINT sets `stop`; the second interrupts."""

    def handler(number: int, _: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt(number)
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals; whoever runs us in another has `stop`
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
