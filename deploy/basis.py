"""The frozen basis of a "core" adapter, from public recordings that belong to no site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from client_node.features import window_for
from client_node.manifest import ManifestRow, read_manifest
from model_core.adapter import AdapterConfig, basis_to_bytes
from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase, load_base
from model_core.public_basis import public_basis
from model_core.training import encode, make_example

BATCH = 16
Progress = Callable[[int, int], None]
"""Called with (done, total) recordings encoded."""


def basis_from_public(
    manifest: Path, base_folder: Path, request: Mapping[str, Any], progress: Progress
) -> bytes:
    """Safetensors bytes of the basis for the adapter of a job request.

    Terms in the manifest weigh as they will in the job (`context_weight`), so that the basis holds
    the directions in which learning such terms moves the adapter. Raises ManifestError, AudioError,
    WeightsError or AdapterError.
    """
    base = load_base(base_folder)
    rows = read_manifest(manifest)
    adapter = request["adapter"]
    config = AdapterConfig(
        kind="core",
        rank=adapter["rank"],
        scaling=adapter.get("scaling", 1.0),
        target_modules=tuple(adapter["target_modules"]),
        target_parameters=tuple(adapter["target_parameters"]),
    )
    examples = [
        make_example(
            base.tokenizer,
            row.text,
            language=row.language or "en",
            terms=row.terms,
            other_weight=request.get("context_weight", 1.0),
        )
        for row in rows
    ]
    states_BND = _encode(base, rows, progress)
    return basis_to_bytes(public_basis(base, config, states_BND, examples))


def _encode(base: SpeechBase, rows: list[ManifestRow], progress: Progress) -> torch.Tensor:
    clips = [read_audio(row.audio) for row in rows]
    window_s = window_for(max(len(clip) for clip in clips) / RATE_HZ)
    pieces = []
    for start in range(0, len(clips), BATCH):
        pieces.append(encode(base, clips[start : start + BATCH], window_s))
        progress(min(start + BATCH, len(clips)), len(clips))
    return torch.cat(pieces)
