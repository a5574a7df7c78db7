"""What a round costs beyond training: three sites, TLS, node authentication, beside stock Flower.

    python -m benchmarks.round_overhead [--json] [--megabytes N ...] [--rounds N] [--no-stock]

A real coordinator in this process, and three real sites as processes: enrolment, SuperNode, warm
worker, agent, budget, ledger, outbox, receipts, admission, aggregation and checkpoint
(`benchmarks.round_overhead_site`). Only training is replaced, by random numbers that are there at
once. "stock" is flwr's own SuperLink, SuperNodes, ServerApp and ClientApp with FedAvg over arrays
of the same size, with TLS and node authentication too (`benchmarks.round_overhead_stock`).

A round of N megabytes sends N million bytes to each site and N back. Its seconds are wall time
from its opening to the opening of the next; nothing is taken off. Figures are medians; the first
round of a job, which begins connections and runs, is left out. `cpu_s` is the CPU time of every
process over the whole job, what comes before and after the rounds included, for each round: on a
busy machine it says more than wall time does.
"""

# ruff: noqa: ARG002 - stand-ins take what the real parts take
from __future__ import annotations

import argparse
import datetime
import itertools
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save
from sqlalchemy import select

from benchmarks.round_overhead_site import PURPOSE
from benchmarks.round_overhead_stock import cpu_seconds, stock_round_seconds
from coordinator.aggregate import Vector
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.model_artifacts import JobArtifacts
from coordinator.request import AdapterRequest, JobRequest
from coordinator.service import Coordinator
from coordinator.store import RoundRow
from deploy.demo.processes import Processes
from model_core.base import save_base
from model_core.nano import nano_base
from privacy.plan import AdapterSpec, PrivacyMode, TensorSpec
from privacy.store import reading

SITES = ("north", "south", "west")
MEGABYTES = (1, 20, 100)
NUMBERS_PER_MEGABYTE = 250_000
TARGET_S = 1.0
LIMIT_S = 900.0
_WATCH_S = 2.0  # a status costs the coordinator some milliseconds


class OneTensor:
    """Artifacts of an adapter of one tensor with `size` numbers, set before each job."""

    def __init__(self, base_sha256: str) -> None:
        self._base_sha256 = base_sha256
        self.size = 0

    def prepare(self, base_folder: Path, request: AdapterRequest) -> JobArtifacts:
        """An adapter that no model has."""
        spec = AdapterSpec("lora", 8, 1.0, ("q_proj",), (), (TensorSpec("w", (self.size,)),))
        return JobArtifacts(self._base_sha256, spec, b"", np.zeros(self.size, np.float32))

    def export(
        self, base_folder: Path, spec: AdapterSpec, basis: bytes, weights_D: Vector
    ) -> bytes:
        """The numbers as they are."""
        return save({"w": weights_D})


class Federation:
    """A running coordinator and three running sites."""

    def __init__(self, coordinator: Coordinator, artifacts: OneTensor, sites: Processes) -> None:
        self._coordinator = coordinator
        self._artifacts = artifacts
        self._sites = sites

    def await_sites(self) -> None:
        """Wait until every site is online."""
        self._wait(lambda: self._coordinator.operations.online() >= set(SITES))

    def round_seconds(self, numbers: int, rounds: int, mode: PrivacyMode) -> list[float]:
        """Wall seconds of each round but the first of a job of `rounds` + 2."""
        self._artifacts.size = numbers
        secure = mode == "secure-aggregation"
        asked = JobRequest(
            purpose=PURPOSE,
            base_folder=Path("none"),
            rounds=rounds + 2,  # the first warms up, the last has no next
            sampling_rate=0.3,
            clipping_norm=1.0,
            delta=1e-6,
            expected_subjects=300,
            noise_multiplier=1.0,
            privacy_mode=mode,
            honest_sites=len(SITES) if secure else None,
            deadline_s=LIMIT_S,
        )
        operations = self._coordinator.operations
        job = operations.submit(asked)
        self._wait(lambda: operations.status(job).state in ("released", "abandoned"))
        status = operations.status(job)
        if status.updates_admitted != len(SITES) * asked.rounds:
            raise RuntimeError(f"the job ended {status.state}: {status.reason}")
        query = select(RoundRow.opened_at).where(RoundRow.job == job).order_by(RoundRow.number)
        with reading(self._coordinator.engine) as session:
            opened_at_s = list(session.scalars(query))
        return [later - before for before, later in itertools.pairwise(opened_at_s)][1:]

    def _wait(self, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + LIMIT_S
        pause = threading.Event()
        while not holds():
            if time.monotonic() > end_s or self._coordinator.wait(0):
                raise RuntimeError("the federation did not get there")
            pause.wait(_WATCH_S)


@contextmanager
def federation(folder: Path) -> Iterator[Federation]:
    """A coordinator and its sites, with their homes in `folder`."""
    base = nano_base()
    save_base(base, folder / "base")
    settings = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)
    now = datetime.datetime.now(datetime.UTC)
    home = CoordinatorHome.create(folder / "coordinator", settings, now)
    artifacts = OneTensor(base.base_sha256)
    coordinator = Coordinator(home, artifacts)
    coordinator.start()
    try:
        with Processes(os.environ) as sites:
            for site in SITES:
                invite = folder / f"{site}.invite"
                invite.write_bytes(coordinator.operations.invite(site, 3600, approve=True))
                words = (folder / site, invite, folder / "base")
                command = [sys.executable, "-m", "benchmarks.round_overhead_site", *map(str, words)]
                sites.start(site, command, folder / f"{site}.log")
            running = Federation(coordinator, artifacts, sites)
            running.await_sites()
            yield running
    finally:
        coordinator.stop()


def measure(megabytes: list[int], rounds: int, *, stock: bool) -> dict[str, Any]:
    """All rows, and the headline."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="auricle-rounds-") as name:
        folder = Path(name)
        for size in megabytes:
            # Each system alone, in the same minutes: six busy processes would time each other.
            with federation(folder / f"auricle-{size}") as running:
                modes: tuple[PrivacyMode, ...] = ("local-noise", "secure-aggregation")
                for mode in modes:
                    before_s = cpu_seconds()
                    seconds = running.round_seconds(size * NUMBERS_PER_MEGABYTE, rounds, mode)
                    cpu_s = (cpu_seconds() - before_s) / (rounds + 2)
                    rows.append(_row("auricle", mode, size, seconds, cpu_s))
            if stock:
                numbers = size * NUMBERS_PER_MEGABYTE
                stock_folder = folder / f"stock-{size}"
                seconds, cpu_s = stock_round_seconds(stock_folder, SITES, numbers, rounds)
                rows.append(_row("stock Flower", "FedAvg", size, seconds, cpu_s))
    return {"rows": rows, "headline": _headline(rows)}


def _row(
    system: str, mode: str, megabytes: int, seconds: list[float], cpu_s: float
) -> dict[str, Any]:
    return {
        "system": system,
        "mode": mode,
        "megabytes": megabytes,
        "rounds": len(seconds),
        "median_s": round(statistics.median(seconds), 3),
        "least_s": round(min(seconds), 3),
        "most_s": round(max(seconds), 3),
        "cpu_s": round(cpu_s, 3),
        "load": round(os.getloadavg()[0], 1),
    }


def _headline(rows: list[dict[str, Any]]) -> dict[str, Any]:
    chosen = next(row for row in rows if row["mode"] == "local-noise")
    beside = [row["median_s"] for row in rows if row["mode"] == "FedAvg"]
    return {
        "metric": f"seconds of a {chosen['megabytes']} MB round beyond training, {len(SITES)} "
        "sites, TLS and node authentication",
        "value": chosen["median_s"],
        "stock_flower": beside[0] if beside else None,
        "target": TARGET_S,
        "met": chosen["median_s"] <= TARGET_S,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--megabytes", type=int, nargs="+", default=list(MEGABYTES))
    parser.add_argument("--rounds", type=int, default=10, help="rounds timed for each row")
    parser.add_argument("--no-stock", action="store_true", help="leave stock Flower out")
    arguments = parser.parse_args()
    result = measure(arguments.megabytes, arguments.rounds, stock=not arguments.no_stock)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
