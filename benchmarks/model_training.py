"""Training rows of `benchmarks.model`: one step on an adapter over cached encoder states.

Shapes: B utterances of the step, one subject each; S encoder states; D trained numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from model_core.adapter import AdapterConfig, attach
from model_core.audio import RATE_HZ
from model_core.base import make_base
from model_core.training import collate, encode, make_example, row_losses
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint
from privacy.per_subject.engine import PerSubjectEngine

UTTERANCES = 16
REPEATS = 3
MARGIN_S = 1.0
CLIPPING_NORM = 1.0
CONFIG = AdapterConfig(
    "lora", 4, 1.0, ("decoder.*encoder_attn.(q|v|out)_proj",), ("decoder.*experts.up_proj",)
)


def training_rows(clips: Sequence[Tensor], texts: Sequence[str]) -> list[dict[str, object]]:
    """Utterances per second of each way to take a step, in turns."""
    clips, texts = clips[:UTTERANCES], texts[:UTTERANCES]
    base = make_base(load_whisper(resolve_checkpoint(None)), MixtureConfig())
    window_s = max(len(clip) for clip in clips) / RATE_HZ + MARGIN_S
    examples = [make_example(base.tokenizer, text) for text in texts]
    ids_BT, weight_BT = collate(examples, base.tokenizer.end)
    adapter = attach(base.model, CONFIG)
    cached_BSD = encode(base, clips, window_s)
    model = adapter.peft_model.get_base_model()
    engine = PerSubjectEngine(adapter.layers)
    subjects_B = torch.arange(len(clips))
    leaves = [p for p in adapter.peft_model.parameters() if p.requires_grad]

    def plain(states_BSD: Tensor) -> None:
        torch.autograd.grad(row_losses(model, states_BSD, ids_BT, weight_BT).mean(), leaves)

    def private() -> None:
        with adapter.training_mode():
            step = [(lambda: row_losses(model, cached_BSD, ids_BT, weight_BT), subjects_B)]
            engine.clipped_sum(step, len(clips), CLIPPING_NORM)

    steps: dict[str, Callable[[], None]] = {
        "plain, encoder run each time": lambda: plain(encode(base, clips, window_s)),
        "plain, cached states": lambda: plain(cached_BSD),
        "per-subject gradients, cached states": private,
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(REPEATS + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    taken_s = {name: statistics.median(each[1:]) for name, each in seconds.items()}
    return [
        {"training_step": name, "utterances_per_s": round(len(clips) / each, 2)}
        for name, each in taken_s.items()
    ]
