"""What small updates cost in quality: bytes, error beside the noise, and the loss of a nano run.

    python -m benchmarks.update_sizes [--json] [--seeds N]

Sizes: one noised update of the adapters that the project has trained on Whisper tiny.en, written in
each encoding of `privacy.update_encoding`; "packed" is float32 through the same DEFLATE, which the
plan does not offer. The update is N(0, σ²C²) and a signal of norm C for each subject of the lot,
heavy-tailed as gradients are. Its error is that of the sum over three sites: relative to the sum,
and to the standard deviation of the noise that is in it on purpose.

Quality: private rounds of three sites on the nano base, from the same noise, once in each encoding
with coins of its own; the loss on what was trained on, before and after.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import zlib
from typing import Any, get_args

import numpy as np
import torch

from client_node.invented_rows import invent_rows
from coordinator.aggregate import aggregate, pack
from coordinator.optimiser import OptimiserState, apply
from model_core.adapter import Adapter, AdapterConfig, attach, make_basis
from model_core.nano import nano_base
from model_core.training import collate, row_losses
from privacy.mechanism import clip_and_sum, privatise
from privacy.per_subject import PerSubjectEngine
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec, UpdateEncoding
from privacy.random_source import DeterministicRandomSource
from privacy.update_encoding import decode, encode

ENCODINGS: tuple[UpdateEncoding, ...] = get_args(UpdateEncoding)
ADAPTERS = {"core of the demo": 3_584, "core, rank 48": 73_728, "LoRA, rank 8": 270_336}
HEADLINE = "core, rank 48"
TARGET = 0.25
NOISE, LOT, SITES = 1.0, 90, 3
ROUNDS, SUBJECTS = 30, 24
TARGETS = (r"model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(q|k|v|out)_proj",)


def noised_update(size: int, seed: int) -> np.ndarray:
    """One site's update, float32 [D]: noise of σC = 1, and a lot's clipped gradients."""
    rng = np.random.default_rng(seed)
    signal_D = rng.standard_t(3, size)
    signal_D *= LOT / np.linalg.norm(signal_D)
    return (signal_D + NOISE * rng.standard_normal(size)).astype(np.float32)


def sizes_of(name: str, size: int) -> list[dict[str, Any]]:
    """Rows of one adapter."""
    updates = [noised_update(size, seed) for seed in range(SITES)]
    exact_D = sum(update_D.astype(np.float64) for update_D in updates)
    packed = len(zlib.compress(updates[0].tobytes(), 6))
    rows = [_row(name, size, "float32, packed", packed, np.zeros(size), exact_D)]
    coins = np.random.default_rng(SITES)
    for encoding in ENCODINGS:
        sent = [encode(update_D.tobytes(), encoding, coins) for update_D in updates]
        sum_D = sum(decode(data, encoding, size).astype(np.float64) for data in sent)
        rows.append(_row(name, size, encoding, len(sent[0]), sum_D - exact_D, exact_D))
    return rows


def _row(
    name: str, size: int, encoding: str, sent_bytes: int, error_D: np.ndarray, exact_D: np.ndarray
) -> dict[str, Any]:
    deviation = NOISE * np.sqrt(SITES)
    return {
        "adapter": name,
        "numbers": size,
        "encoding": encoding,
        "bytes": sent_bytes,
        "ratio": round(sent_bytes / (4 * size), 3),
        "relative_error": float(f"{np.linalg.norm(error_D) / np.linalg.norm(exact_D):.2g}"),
        "error_beside_noise": float(f"{np.sqrt(np.mean(error_D**2)) / deviation:.2g}"),
    }


class NanoRun:
    """Private rounds on the nano base's decoder attention."""

    def __init__(self) -> None:
        self._base = nano_base(seed=3)
        config = AdapterConfig("core", 16, 1.0, TARGETS)
        self._adapter: Adapter = attach(
            self._base.model, config, make_basis(self._base.model, config)
        )
        self._engine = PerSubjectEngine(self._adapter.layers)
        rows = [invent_rows(self._base, 100 + s, 1)[0] for s in range(SITES * SUBJECTS)]
        self._states_BSD = torch.stack([states.float() for states, _ in rows])
        collated = collate([example for _, example in rows], self._base.tokenizer.end)
        self._ids_BT, self._weight_BT = collated
        self.plan = _plan(self._adapter, "float32")

    def losses(self, rows: slice) -> torch.Tensor:
        """Loss of each of `rows`, [B]."""
        model = self._adapter.peft_model.get_base_model()
        batch = (self._states_BSD[rows], self._ids_BT[rows], self._weight_BT[rows])
        return row_losses(model, *batch)

    def train(self, encoding: UpdateEncoding, seed: int) -> tuple[float, float]:
        """Mean loss before and after all rounds."""
        plan = _plan(self._adapter, encoding)
        weights_D = np.zeros(plan.adapter.size, np.float32)
        state = OptimiserState.initial(plan.adapter.size)
        coins = np.random.default_rng(seed)
        before = self._loss(weights_D)
        for number in range(ROUNDS):
            self._adapter.load_vector(torch.from_numpy(weights_D))
            updates = [self._update(plan, site, f"{seed}/{number}/{site}") for site in range(SITES)]
            sent = [encode(update, encoding, coins) for update in updates]
            plain = (pack(decode(data, encoding, plan.adapter.size)) for data in sent)
            gradient_D = aggregate(plain, plan.adapter.size, plan.divisor)
            weights_D, state = apply(
                plan.optimiser,
                weights_D,
                gradient_D,
                state,
                ROUNDS,
                layer_sizes=[tensor.size for tensor in plan.adapter.tensors],
            )
        return before, self._loss(weights_D)

    def _update(self, plan: RoundPlan, site: int, drawn: str) -> bytes:
        rows = slice(site * SUBJECTS, (site + 1) * SUBJECTS)
        source = DeterministicRandomSource(drawn.encode(), for_tests=True)
        with self._adapter.training_mode():
            loss = functools.partial(self.losses, rows)
            gradients_UD = self._engine.gradients(loss, torch.arange(SUBJECTS), SUBJECTS)
        sum_D, _ = clip_and_sum(gradients_UD, plan.clipping_norm)
        return privatise(sum_D, plan, source).numpy().astype("<f4").tobytes()

    def _loss(self, weights_D: np.ndarray) -> float:
        self._adapter.load_vector(torch.from_numpy(weights_D))
        with torch.no_grad():
            return float(self.losses(slice(None)).mean())


def _plan(adapter: Adapter, encoding: UpdateEncoding) -> RoundPlan:
    tensors = tuple(TensorSpec(name, shape) for name, shape in adapter.tensor_specs())
    return RoundPlan(
        job="ab" * 8,
        purpose="benchmark",
        base_sha256="0" * 64,
        adapter=AdapterSpec("core", 16, 1.0, TARGETS, (), tensors, "0" * 64),
        sampling_rate=1.0,
        noise_multiplier=0.3,
        clipping_norm=1.0,
        rounds=ROUNDS,
        delta=1e-6,
        expected_subjects=SUBJECTS,
        max_utterances_per_subject=1,
        honest_sites=1,
        sites=tuple(f"site-{number}" for number in range(SITES)),
        quorum=SITES,
        deadline_s=60.0,
        optimiser=OptimiserSpec("adam", 0.03),
        issued_at="2026-01-01T00:00:00+00:00",
        update_encoding=encoding,
    )


def quality(seeds: int) -> list[dict[str, Any]]:
    """One row an encoding."""
    run, rows = NanoRun(), []
    for encoding in ENCODINGS:
        losses = [run.train(encoding, seed) for seed in range(seeds)]
        after = [end for _, end in losses]
        rows.append(
            {
                "nano run": encoding,
                "numbers": run.plan.adapter.size,
                "loss_before": round(losses[0][0], 3),
                "loss_after": round(statistics.mean(after), 3),
                "least": round(min(after), 3),
                "most": round(max(after), 3),
            }
        )
    return rows


def measure(seeds: int) -> dict[str, Any]:
    """All rows, and the headline: what is left of an update's bytes as int8."""
    rows = [row for name, size in ADAPTERS.items() for row in sizes_of(name, size)]
    chosen = next(r for r in rows if (r["adapter"], r["encoding"]) == (HEADLINE, "int8"))
    headline = {
        "metric": f"bytes of an int8 update over float32's, {chosen['numbers']} numbers",
        "value": chosen["ratio"],
        "error_beside_noise": chosen["error_beside_noise"],
        "target": TARGET,
        "met": chosen["ratio"] <= TARGET,
    }
    return {"rows": rows + quality(seeds), "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", type=int, default=5, help="nano runs in each encoding")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments.seeds)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
