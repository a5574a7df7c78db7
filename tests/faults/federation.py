"""A federation whose every party is a process of its own that may be killed, and is started again.

The coordinator's job loop, its database and its ledger are the real ones, and so is each site from
its agent down to training the nano model. Between them stand sockets of the file system, so that a
round takes a second and a wire fault is the test's to choose. Noise comes from a source seeded by
site and round: the same admitted updates must give the same bytes, run after run.
"""

from __future__ import annotations

import dataclasses
import hashlib
import multiprocessing
import os
import signal
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from multiprocessing.connection import Listener, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import rfc8785
import torch
from sqlalchemy import Engine

from client_node import trainer as site_trainer
from client_node.assembly import open_agent, open_parts
from client_node.home import SiteHome
from client_node.site_log import SiteLog
from coordinator.job import JobLoop, Tools
from coordinator.model_artifacts import SpeechArtifacts
from coordinator.operations import Operations
from coordinator.registry import ENROLMENT_TYPE, Enrolment
from coordinator.request import AdapterRequest, JobRequest
from model_core.base import SpeechBase
from privacy.parcel import RoundOrder
from privacy.random_source import DeterministicRandomSource
from privacy.signing import Identity, open_as, seal_statement
from tests.client_node.harness import TARGETS, Coordinator, Site, TickingClock
from tests.coordinator.fakes import ENDPOINT, FakeClock, FakeSite, make_tools, node_key, token_of
from tests.faults import wire
from tests.faults.failpoints import Fault, arm
from tests.faults.links import SocketLink

SITES = ("east", "north", "west")
ADVERSARY = "adversary"  # first in the order of names: it answers before the others
LIMIT_S = 300.0
SUBJECTS = 6


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a federation's parties keep what is theirs."""

    root: Path

    @property
    def coordinator(self) -> Path:
        """Folder of the coordinator's database and releases."""
        return self.root / "coordinator"

    @property
    def identity(self) -> Identity:
        """The coordinator's key."""
        return Identity.load(self.root / "coordinator.pem")

    def site(self, name: str) -> SiteHome:
        """A site's home."""
        return SiteHome(self.root / "sites" / name)

    def fired(self, name: str) -> Path:
        """The file that says that the fault `name` has happened."""
        return self.root / "fired" / name

    @property
    def happened(self) -> list[str]:
        """Names of the faults that have happened."""
        return sorted(path.name for path in (self.root / "fired").iterdir())

    def draws(self, site: str) -> list[int]:
        """The rounds for which a site has drawn noise, one line each time that it did."""
        path = self.root / f"{site}.draws"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def tools(self, clock: FakeClock | None = None) -> tuple[Tools, Engine]:
        """The coordinator's tools over its database, opened anew."""
        tools, engine = make_tools(self.coordinator, self.identity, clock or FakeClock())
        return dataclasses.replace(tools, artifacts=SpeechArtifacts()), engine


def found(root: Path, base: SpeechBase, rounds: int, sites: Sequence[str] = SITES) -> str:
    """Make every home, enrol `sites` and the adversary, submit a job, and run none of it."""
    place = Place(root)
    for folder in (place.coordinator, root / "sites", root / "fired"):
        folder.mkdir(parents=True)
    identity = Identity.generate()
    identity.save(root / "coordinator.pem")
    tools, engine = place.tools()
    operations = Operations(
        engine, tools, ENDPOINT, online=frozenset, set_fleet=lambda _: None, wake=lambda: None
    )
    for name in sites:
        site = Site(place.site(name).root, base, Coordinator(identity), name=name)
        for subject in range(SUBJECTS):
            site.record(f"{name}-{subject}", f"words of {name} {subject}")
        site.close()
        _enrol(operations, name, site.keys.identity, site.keys.node_public_openssh)
    adversary = Identity.generate()
    adversary.save(root / "adversary.pem")
    _enrol(operations, ADVERSARY, adversary, node_key())
    job = operations.submit(
        JobRequest(
            purpose="drugs",
            base_folder=place.site(sites[0]).root / "base",
            rounds=rounds,
            sampling_rate=0.5,
            clipping_norm=0.5,
            delta=1e-6,
            expected_subjects=SUBJECTS,
            noise_multiplier=6.0,
            quorum=1,
            adapter=AdapterRequest(kind="core", rank=2, target_modules=TARGETS),
        )
    )
    engine.dispose()
    return job


def _enrol(operations: Operations, name: str, identity: Identity, node_public: str) -> None:
    trusted = operations.tools.identity.public
    token = token_of(operations.invite(name, 3600, approve=True), trusted)
    proof = {
        "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
        "site": name,
        "node_public": node_public,
    }
    statement = seal_statement(rfc8785.dumps(proof), ENROLMENT_TYPE, identity)
    pem = identity.public.public_pem
    operations.enrol(Enrolment(token, name, pem, node_public, statement))


class RoundSource:
    """A source of randomness that begins anew, from its own seed, with each round of each site."""

    name = DeterministicRandomSource.name

    def __init__(self, site: str) -> None:
        self._site = site
        self.begin(0)

    def begin(self, round_: int) -> None:
        """Draw for `round_` from here on."""
        seed = f"{self._site}/{round_}".encode()
        self._source = DeterministicRandomSource(seed, for_tests=True)

    def normal(self, size: int) -> torch.Tensor:
        """As `privacy.random_source.RandomSource`."""
        return self._source.normal(size)

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        """As `privacy.random_source.RandomSource`."""
        return self._source.poisson_sample(n, rate)


def site_life(root: Path, name: str, listener: Listener, faults: Iterable[Fault]) -> None:
    """One life of a site's process: answer whoever connects, until killed."""
    torch.set_num_threads(1)
    place, source, now = Place(root), RoundSource(name), 0
    home = place.site(name)
    _note_draws(root / f"{name}.draws", lambda: now)
    for fault in faults:
        arm(fault, lambda: now)
    trusted = (place.identity.public,)
    agent = open_agent(open_parts(home, source), SiteLog(home.logs, TickingClock()), TickingClock())
    while True:
        with listener.accept() as connection:
            parcel = wire.read_parcel(connection)
            if parcel.kind == "round":
                now = open_as(RoundOrder, parcel.statement, trusted).round
                source.begin(now)
            wire.write_parcel(connection, agent.handle(parcel))


def _note_draws(path: Path, current_round: Callable[[], int]) -> None:
    """Write down, durably and outside the site's own books, each time that noise is drawn."""
    real = site_trainer.privatise

    def noted(*args: Any, **kwargs: Any) -> Any:
        drawn = real(*args, **kwargs)
        with path.open("a") as file:
            file.write(f"{current_round()}\n")
            file.flush()
            os.fsync(file.fileno())
        return drawn

    site_trainer.privatise = noted


@dataclasses.dataclass(frozen=True)
class Script:
    """What is to go wrong.

    Attributes:
        deaths: for each party (a site's name, or "coordinator"), the steps at which it dies.
        wire: what happens to parcels, as `SocketLink` takes it: (round, site) to a wire fault.
        hostile: for a round, the hostile update that the adversary sends in it.
        absent: for a round, the sites that are not heard in it at all.
    """

    deaths: Mapping[str, tuple[Fault, ...]] = dataclasses.field(default_factory=dict)
    wire: Mapping[tuple[int, str], str] = dataclasses.field(default_factory=dict)
    hostile: Mapping[int, str] = dataclasses.field(default_factory=dict)
    absent: Mapping[int, frozenset[str]] = dataclasses.field(default_factory=dict)


def coordinator_life(root: Path, sockets: Path, job: str, script: Script) -> None:
    """One life of the coordinator's process: its job, to the end or until killed."""
    torch.set_num_threads(1)
    place = Place(root)
    clock = FakeClock()
    tools, engine = place.tools(clock)
    for fault in script.deaths.get("coordinator", ()):
        arm(fault, lambda: tools.jobs.load(job).rounds_done + 1)
    adversary = FakeSite(ADVERSARY, tools.identity.public)
    adversary.identity = Identity.load(root / "adversary.pem")
    adversary.plans[job] = tools.jobs.load(job).plan
    link = SocketLink(sockets, SITES, adversary, script, place)
    loop = JobLoop(job, tools, link)
    tools.jobs.renew_deadline(job, clock())
    while not loop.step():
        clock.wait(0.5)
        for site in tools.registry.sites():
            if site.quarantine_code:  # an operator who thinks that it was an accident
                tools.registry.restore(site.name)
    engine.dispose()


def run(root: Path, job: str, script: Script) -> int:
    """Run the job to its end, starting again whoever was killed; returns how many were.

    Raises RuntimeError where a process ended otherwise than by SIGKILL, and TimeoutError where
    nothing happened for LIMIT_S seconds.
    """
    fork = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        sockets = Path(folder)
        listeners = {name: wire.listen(sockets / name) for name in SITES}

        def start(name: str) -> BaseProcess:
            if name == "coordinator":
                process = fork.Process(target=coordinator_life, args=(root, sockets, job, script))
            else:
                faults = script.deaths.get(name, ())
                process = fork.Process(target=site_life, args=(root, name, listeners[name], faults))
            process.start()
            return process

        lives = {name: start(name) for name in (*SITES, "coordinator")}
        try:
            return _watch(lives, start)
        finally:
            for process in lives.values():
                process.kill()
                process.join()
            for listener in listeners.values():
                listener.close()


def _watch(lives: dict[str, BaseProcess], start: Callable[[str], BaseProcess]) -> int:
    """Start again who was killed, until the coordinator ends by itself."""
    killed = 0
    while True:
        ended = wait([process.sentinel for process in lives.values()], LIMIT_S)
        if not ended:
            raise TimeoutError("the federation stands still")
        for name in [n for n, process in lives.items() if process.sentinel in ended]:
            lives[name].join()
            code = lives[name].exitcode
            if name == "coordinator" and code == 0:
                return killed
            if code != -signal.SIGKILL:
                raise RuntimeError(f"{name} ended with status {code}")
            killed += 1
            lives[name] = start(name)


def aggregated(tools: Tools) -> dict[int, dict[str, Any]]:
    """By round, what the coordinator's ledger says of it: who was admitted, weights, mechanism."""
    entries = [e.fields for e in tools.journal.ledger.entries() if e.kind == "round.aggregated"]
    found_ = {int(fields["round"]): dict(fields) for fields in entries}
    assert len(found_) == len(entries), "a round is on the ledger twice"
    return found_
