"""CPU time of each mixture's encoder against a dense one of as many parameters.

For `benchmarks.sparse`: in turns in one process, by the CPU time of its one thread.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from torch import nn
from transformers import WhisperConfig, WhisperForConditionalGeneration

from model_core.features import encode_mel
from model_core.upcycle import MIXTURES, upcycle
from model_core.weights import load_whisper, resolve_checkpoint

_FRAMES = 1000  # 10 s, what the exported model hears of a short clip


def encoder_times(repeats: int) -> list[dict[str, Any]]:
    """A row for each named mixture of tiny.en: median time, and median ratio of neighbours."""
    mel_BMT = torch.randn(1, 80, _FRAMES, generator=torch.Generator().manual_seed(0))
    rows = []
    for name, mixture in MIXTURES.items():
        sparse = upcycle(load_whisper(resolve_checkpoint(None)).model, mixture).model.encoder
        dense = _dense_of(_parameters(sparse))
        seconds: dict[str, list[float]] = {"sparse": [], "dense": []}
        for _ in range(repeats + 1):
            for kind, encoder in (("sparse", sparse), ("dense", dense)):
                with torch.inference_mode():
                    start = time.thread_time()
                    encode_mel(encoder, mel_BMT)
                    seconds[kind].append(time.thread_time() - start)
        pairs = list(zip(seconds["sparse"], seconds["dense"], strict=True))[1:]
        rows.append(
            {
                "model": name,
                "parameters": _parameters(sparse),
                "dense_parameters": _parameters(dense),
                "encoder_ms": round(1e3 * statistics.median(a for a, _ in pairs), 1),
                "time_ratio": round(statistics.median(a / b for a, b in pairs), 3),
            }
        )
    return rows


def _dense_of(parameters: int) -> nn.Module:
    """A random tiny.en encoder whose blocks are so wide that its layers have as many parameters."""
    fields = load_whisper(resolve_checkpoint(None)).model.config.to_dict()

    def encoder(units: int) -> nn.Module:
        config = WhisperConfig(**{**fields, "encoder_ffn_dim": units, "decoder_layers": 1})
        return WhisperForConditionalGeneration(config).model.encoder.eval()  # type: ignore[no-any-return]

    with torch.device("meta"):
        one, two = (_parameters(encoder(units)) for units in (8, 16))
    units = 8 + round((parameters - one) / (two - one)) * 8
    return encoder(units)


def _parameters(encoder: nn.Module) -> int:
    return sum(p.numel() for p in encoder.layers.parameters())  # type: ignore[union-attr]
