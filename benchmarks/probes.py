"""What always-on probes cost: the probes of a round ÷ the whole round, in CPU time.

    python -m benchmarks.probes [--json] [--rounds N] [--subjects U] [--nano] [--alone]

Rounds of a site's own trainer on the pretrained base (with --nano on the built-in one, which is so
small that the ratio means nothing), with the plan's default recipe: a core adapter of rank 16, an
expected lot of U·q subjects, one recording of 8 seconds of states and about 20 tokens each. The
recordings' states are invented; nothing is encoded in either part. Probes and rounds are timed in
the same process, by the CPU time of its one thread, so that other programs count little. With
--alone each subject has a forward pass of its own (`one_subject_per_step`): compare `round_cpu_s`.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from client_node import trainer as trainer_module
from client_node.features import FeatureStore
from client_node.store import NewRecording, Recording, SiteStore
from client_node.trainer import SpeechTrainer
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase, make_base
from model_core.basis import basis_to_bytes, make_basis
from model_core.nano import nano_base
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.random_source import SystemRandomSource
from privacy.store import open_engine

TARGET = 0.02
STATES = 400  # of 8 seconds
SAMPLING_RATE = 0.3
RANK = 16
MODULES = (r"model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(q|k|v|out)_proj",)
EXPERTS = (r"model\.decoder\..*experts\.(up|down)_proj",)
TEXT = "please take one tablet of metformin every morning and come back in two weeks"


class InventedFeatures(FeatureStore):
    """The same random encoder states for every recording."""

    def __init__(self, base: SpeechBase) -> None:
        generator = torch.Generator().manual_seed(0)
        self._states_SD = torch.randn(STATES, base.model.config.d_model, generator=generator).half()

    def states(self, recording: Recording) -> torch.Tensor | None:  # noqa: ARG002
        """States [S, D] float16."""
        return self._states_SD


def plan_for(base: SpeechBase, subjects: int) -> tuple[RoundPlan, bytes]:
    """The default recipe's plan and its basis."""
    config = AdapterConfig("core", RANK, 1.0, MODULES, EXPERTS)
    frozen = make_basis(base.model, config)
    basis = basis_to_bytes(frozen)
    tensors = attach(base.model, config, frozen).tensor_specs()
    spec = AdapterSpec(
        "core",
        RANK,
        1.0,
        MODULES,
        EXPERTS,
        tuple(TensorSpec(name, shape) for name, shape in tensors),
        hashlib.sha256(basis).hexdigest(),
    )
    plan = RoundPlan(
        job="be",
        purpose="benchmark",
        base_sha256=base.base_sha256,
        adapter=spec,
        sampling_rate=SAMPLING_RATE,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        rounds=100,
        delta=1e-6,
        expected_subjects=subjects,
        max_utterances_per_subject=4,
        honest_sites=1,
        sites=("bench",),
        quorum=1,
        deadline_s=600.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at="2026-11-23T12:00:00Z",
    )
    return plan, basis


def recordings(subjects: int) -> list[NewRecording]:
    """One recording of each subject."""
    return [
        NewRecording(
            audio_sha256=hashlib.sha256(str(number).encode()).hexdigest(),
            path=f"{number}.wav",
            text=TEXT,
            subject=f"s{number}",
            split="train",
            language="en",
            duration_s=8.0,
            terms=(),
            consent=True,
        )
        for number in range(subjects)
    ]


@dataclasses.dataclass
class Stopwatch:
    """CPU seconds of every call of a function."""

    seconds: list[float] = dataclasses.field(default_factory=list)

    def timed(self, function):
        """`function`, timed."""

        def call(*arguments):
            start = time.thread_time()
            try:
                return function(*arguments)
            finally:
                self.seconds.append(time.thread_time() - start)

        return call


def run(base: SpeechBase, subjects: int, rounds: int, *, alone: bool) -> dict[str, object]:
    """All rounds, and the headline: the median share of a round that its probes take."""
    plan, basis = plan_for(base, subjects)
    watch, whole = Stopwatch(), Stopwatch()
    honest = trainer_module.probe
    with tempfile.TemporaryDirectory() as folder:
        store = SiteStore(open_engine(f"sqlite:///{Path(folder) / 'bench.db'}"))
        store.add(recordings(subjects))
        trainer = SpeechTrainer(
            base,
            store,
            InventedFeatures(base),
            SystemRandomSource(),
            16,
            one_subject_per_step=alone,
        )
        train = whole.timed(trainer.train)
        trainer_module.probe = watch.timed(honest)
        try:
            for round_ in range(1, rounds + 2):
                train(plan, basis, round_, bytes(4 * plan.adapter.size))
        finally:
            trainer_module.probe = honest
            store.engine.dispose()
    pairs = list(zip(watch.seconds, whole.seconds, strict=True))[1:]  # the first warms up
    rows = [
        {
            "round_cpu_s": round(all_s, 3),
            "probes_cpu_s": round(probe_s, 4),
            "share": probe_s / all_s,
        }
        for probe_s, all_s in pairs
    ]
    share = round(statistics.median(probe_s / all_s for probe_s, all_s in pairs), 4)
    headline = {
        "metric": f"probes / round, expected lot {subjects * SAMPLING_RATE:.0f}",
        "value": share,
        "target": TARGET,
        "met": share <= TARGET,
    }
    return {"rows": rows, "trained_numbers": plan.adapter.size, "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds")
    parser.add_argument("--subjects", type=int, default=300, help="subjects of the site")
    parser.add_argument("--alone", action="store_true", help="one subject a forward pass")
    parser.add_argument("--nano", action="store_true", help="the built-in base")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.nano:
        base = nano_base()
    else:
        base = make_base(load_whisper(resolve_checkpoint(None)), MixtureConfig())
    result = run(base, arguments.subjects, arguments.rounds, alone=arguments.alone)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
