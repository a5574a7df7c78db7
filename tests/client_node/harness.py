"""A site on disk and a coordinator's side of the conversation, for tests from outside."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import soundfile
from sqlalchemy import Engine

from client_node.agent import SiteAgent
from client_node.assembly import SiteParts, open_agent, open_parts, speech_trainer
from client_node.home import SiteHome, SiteSettings, write_private
from client_node.keys import create_keys
from client_node.policy import SitePolicy, default_policy
from client_node.private_round import Trainer
from client_node.site_log import SiteLog
from client_node.store import NewRecording
from client_node.trainer import TrainedUpdate
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase, save_base
from model_core.basis import basis_to_bytes, make_basis
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.ledger_verify import Report, verify_export
from privacy.merkle import MerkleTree
from privacy.parcel import Answer, HeadProof, Parcel, ReleaseManifest, RoundOrder
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.private_log import PrivateLog
from privacy.probes import PROBES, ProbeReceipt, ProbeResult
from privacy.random_source import RandomSource
from privacy.signing import Identity, open_as, seal
from privacy.store import open_engine

RATE_HZ = 16_000
TARGETS = (r"model\.decoder\..*\.(q_proj|fc1)",)
PASSED = ProbeReceipt(tuple(ProbeResult(name, "passed") for name in PROBES))
START = datetime(2026, 11, 23, 12, tzinfo=UTC)


class Kill(BaseException):
    """The process dies here: nothing in the product may catch it."""


class TickingClock:
    """A clock that moves a second at each reading."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


class CountingTrainer:
    """Draws fresh random bytes each time, so that a second draw cannot pass for the first."""

    random_source = "counting"

    def __init__(self) -> None:
        self.draws = 0
        self.error: BaseException | None = None

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        pass

    def check_weights(self, plan: RoundPlan, basis: bytes, vector: bytes) -> None:
        pass

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        self.draws += 1
        if self.error is not None:
            raise self.error
        noise_D = np.random.default_rng().standard_normal(plan.adapter.size, np.float32)
        return TrainedUpdate(noise_D.tobytes(), PASSED)


@dataclasses.dataclass
class Coordinator:
    """Signs plans, orders and releases as the real one does, each with a larger ledger."""

    identity: Identity
    tree: MerkleTree = dataclasses.field(default_factory=MerkleTree)

    def grow(self) -> int:
        """One more entry in its ledger; returns how many there are."""
        self.tree.append(f"entry {self.tree.size}".encode())
        return self.tree.size

    def order(
        self, plan: RoundPlan, round_: int, vector: bytes | None = None, **changes: object
    ) -> Parcel:
        size = self.grow()
        vector = bytes(4 * plan.adapter.size) if vector is None else vector
        order = RoundOrder(
            job=plan.job,
            round=round_,
            plan_sha256=plan.sha256,
            payload_sha256=hashlib.sha256(vector).hexdigest(),
            tree_head=self.tree.root().hex(),
            tree_size=size,
            proofs=tuple(self.proof(old) for old in range(1, size)),
        )
        return Parcel("round", seal(dataclasses.replace(order, **changes), self.identity), vector)

    def proof(self, old_size: int) -> HeadProof:
        hashes = self.tree.consistency_proof(old_size)
        return HeadProof(old_size, tuple(one.hex() for one in hashes))

    def prepare(self, plan: RoundPlan, basis: bytes) -> Parcel:
        return Parcel("prepare", seal(plan, self.identity), basis)

    def release(self, plan: RoundPlan, adapter: bytes, **changes: object) -> Parcel:
        size = self.grow()
        manifest = ReleaseManifest(
            release=f"r-{size}",
            job=plan.job,
            rounds=plan.rounds,
            base_sha256=plan.base_sha256,
            plan_sha256=plan.sha256,
            adapter_sha256=hashlib.sha256(adapter).hexdigest(),
            parent=None,
            tree_head=self.tree.root().hex(),
            tree_size=size,
            issued_at=START.isoformat(),
            epsilon_loc=1.0,
            epsilon_sec=0.5,
            delta=plan.delta,
        )
        manifest = dataclasses.replace(manifest, **changes)
        return Parcel("release", seal(manifest, self.identity), adapter)


class Site:
    """A site's home with a nano base, and agents opened on it as often as a test wants."""

    def __init__(
        self,
        root: Path,
        base: SpeechBase,
        coordinator: Coordinator,
        database_url: str = "",
        name: str = "north",
    ) -> None:
        self.name = name
        self.home = SiteHome(root)
        self.home.create()
        self.keys = create_keys(self.home)
        self.clock = TickingClock()
        folder = root / "base"
        save_base(base, folder)
        SiteSettings(
            site=name,
            base_folder=str(folder),
            base_sha256=base.base_sha256,
            coordinator_url="https://localhost:1",
            rows_per_step=3,
            database_url=database_url,
        ).save(self.home.settings)
        public = coordinator.identity.public
        default_policy(
            self.home.policy,
            coordinators=(public.key_id,),
            bases=(base.base_sha256,),
            purposes={"drugs": 8.0},
            allow_unprotected=True,
        )
        write_private(self.home.coordinator_key, public.public_pem.encode())
        self.log = SiteLog(self.home.logs, self.clock)
        self._engines: list[Engine] = []

    def close(self) -> None:
        self.log.close()
        for engine in self._engines:
            engine.dispose()

    def engine(self) -> Engine:
        self._engines.append(open_engine(self.home.database_url))
        return self._engines[-1]

    def books(self) -> tuple[Ledger, Budget]:
        """Ledger and budget, opened anew from disk."""
        engine = self.engine()
        ledger = Ledger(engine, self.keys.identity, f"site/{self.name}", self.clock)
        caps = SitePolicy.load(self.home.policy).caps
        return ledger, Budget(engine, self.name, caps, ledger.append, self.clock)

    def private_log(self) -> PrivateLog:
        """The private log, opened anew from disk."""
        return PrivateLog(self.engine(), self.keys.identity, f"site/{self.name}", self.clock)

    def audit(self) -> Report:
        """What an auditor finds in an export, trusting the site's key alone."""
        path = self.home.root / "export.jsonl"
        self.books()[0].export(path)
        return verify_export(path, [self.keys.identity.public])

    def parts(self, source: RandomSource | None = None) -> SiteParts:
        parts = open_parts(self.home, source)
        self._engines.append(parts.store.engine)
        return parts

    def agent(
        self,
        trainer: Trainer | None = None,
        source: RandomSource | None = None,
    ) -> SiteAgent:
        make: Callable[[SiteParts], Trainer] = speech_trainer
        if trainer is not None:
            make = lambda _: trainer  # noqa: E731
        return open_agent(self.parts(source), self.log, self.clock, make)

    def answer(self, reply: Parcel) -> Answer:
        return open_as(Answer, reply.statement, (self.keys.identity.public,))

    def record(self, subject: str, text: str, seconds: float = 0.4, **fields: object) -> None:
        """Store one recording of a tone of its own, which swells: a steady one is no speech."""
        store = self.parts().store
        count = store.counts().recordings
        path = self.home.root / f"{fields.pop('name', 'clip')}-{count}.wav"
        time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
        swell = 0.3 * np.sin(2 * np.pi * 2 * time_s)
        soundfile.write(path, swell * np.sin(2 * np.pi * (200 + 17 * count) * time_s), RATE_HZ)
        recording = NewRecording(
            audio_sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
            path=str(path),
            text=text,
            subject=subject,
            split="train",
            language="en",
            duration_s=seconds,
            terms=(),
            consent=True,
        )
        store.add([dataclasses.replace(recording, **fields)])


def make_plan(base: SpeechBase, **changes: object) -> tuple[RoundPlan, bytes]:
    """A plan of core adapters over the nano decoder, and its basis bytes."""
    config = AdapterConfig(kind="core", rank=2, scaling=1.0, target_modules=TARGETS)
    frozen = make_basis(base.model, config)
    basis = basis_to_bytes(frozen)
    adapter = attach(base.model, config, frozen)
    spec = AdapterSpec(
        kind="core",
        rank=config.rank,
        scaling=config.scaling,
        target_modules=config.target_modules,
        target_parameters=(),
        tensors=tuple(TensorSpec(name, shape) for name, shape in adapter.tensor_specs()),
        basis_sha256=hashlib.sha256(basis).hexdigest(),
    )
    plan = RoundPlan(
        job="0f" * 8,
        purpose="drugs",
        base_sha256=base.base_sha256,
        adapter=spec,
        sampling_rate=0.5,
        noise_multiplier=2.0,
        clipping_norm=0.5,
        rounds=4,
        delta=1e-6,
        expected_subjects=10,
        max_utterances_per_subject=2,
        honest_sites=1,
        sites=("north", "south"),
        quorum=1,
        deadline_s=60.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at=START.isoformat(),
    )
    return dataclasses.replace(plan, **changes), basis
