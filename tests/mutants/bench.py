"""Real rounds of a nano speech site, for probes to judge a planted fault by."""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from client_node.features import FeatureStore
from client_node.store import NewRecording, SiteStore
from client_node.trainer import SpeechTrainer
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase
from model_core.basis import basis_to_bytes, make_basis
from model_core.nano import nano_base
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.probes import ProbeError
from privacy.random_source import SystemRandomSource
from privacy.store import open_engine

SUBJECTS = 12
RECORDINGS_EACH = 3
RATES = (0.5, 0.002)  # at the second nearly all lots are empty
TARGETS = (r"model\.decoder\..*\.(q_proj|fc1)",)
EXPERTS = (r"model\.decoder\..*experts\.(up|down)_proj",)


class InventedFeatures(FeatureStore):
    """Encoder states drawn from a recording's hash: no audio, and equal at every call."""

    def __init__(self, base: SpeechBase) -> None:
        self._width = base.model.config.d_model

    def states(self, recording: object) -> torch.Tensor:
        seed = int(recording.audio_sha256[:12], 16)
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(20, self._width, generator=generator).half()


@dataclasses.dataclass(frozen=True)
class Bench:
    """A site with recordings, and one plan for each sampling rate."""

    base: SpeechBase
    store: SiteStore
    plans: tuple[RoundPlan, ...]
    basis: bytes

    def failed(self, rounds: int = 2) -> str:
        """Name of the probe that stopped one of some rounds at each rate; "" where none did.

        Each rate has a trainer of its own, as after a restart.
        """
        size = self.plans[0].adapter.size
        values = 0.1 * np.random.default_rng(3).standard_normal(size)
        vector = values.astype("<f4").tobytes()
        for plan in self.plans:
            trainer = SpeechTrainer(
                self.base, self.store, InventedFeatures(self.base), SystemRandomSource(), 3
            )
            for round_ in range(1, rounds + 1):
                try:
                    trainer.train(plan, self.basis, round_, vector)
                except ProbeError as error:
                    return next(r.name for r in error.receipt.results if r.failed)
        return ""


@contextmanager
def open_bench() -> Iterator[Bench]:
    """A bench in a temporary folder."""
    base = nano_base()
    with tempfile.TemporaryDirectory() as folder:
        engine = open_engine(f"sqlite:///{Path(folder) / 'bench.db'}")
        store = SiteStore(engine)
        store.add([_recording(n // RECORDINGS_EACH, n) for n in range(SUBJECTS * RECORDINGS_EACH)])
        plans, basis = _plans(base)
        try:
            yield Bench(base, store, plans, basis)
        finally:
            engine.dispose()


def _recording(subject: int, number: int) -> NewRecording:
    return NewRecording(
        audio_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
        path=f"{number}.wav",
        text=f"take {number} tablets",
        subject=f"s{subject}",
        split="train",
        language="en",
        duration_s=1.0,
        terms=(),
        consent=True,
    )


def _plans(base: SpeechBase) -> tuple[tuple[RoundPlan, ...], bytes]:
    config = AdapterConfig("core", 12, 1.0, TARGETS, EXPERTS)
    frozen = make_basis(base.model, config)
    basis = basis_to_bytes(frozen)
    adapter = attach(base.model, config, frozen)
    spec = AdapterSpec(
        kind="core",
        rank=config.rank,
        scaling=config.scaling,
        target_modules=config.target_modules,
        target_parameters=config.target_parameters,
        tensors=tuple(TensorSpec(name, shape) for name, shape in adapter.tensor_specs()),
        basis_sha256=hashlib.sha256(basis).hexdigest(),
    )
    plan = RoundPlan(
        job="ab" * 8,
        purpose="drugs",
        base_sha256=base.base_sha256,
        adapter=spec,
        sampling_rate=RATES[0],
        noise_multiplier=1.5,
        clipping_norm=0.5,
        rounds=4,
        delta=1e-6,
        expected_subjects=SUBJECTS,
        max_utterances_per_subject=2,
        honest_sites=1,
        sites=("north",),
        quorum=1,
        deadline_s=60.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at="2026-11-23T12:00:00Z",
    )
    plans = tuple(
        dataclasses.replace(plan, sampling_rate=rate, job=f"{number:02x}")
        for number, rate in enumerate(RATES)
    )
    return plans, basis
