"""Several adapters at once, such as the shared release and a site's own on top of it.

Each adapter adds its change to the frozen weights, W + Σᵢ scalingᵢ · Bᵢ Aᵢ, so they may differ in
kind, rank and targets, and their order does not matter beyond rounding. They are merged one after
another; the base and the adapters stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from transformers import WhisperForConditionalGeneration

from model_core.adapter import Adapter, load_adapter


def merge_adapters(
    base_model: WhisperForConditionalGeneration, adapters: Sequence[Adapter | bytes | Path]
) -> WhisperForConditionalGeneration:
    """A model with every adapter in its weights; for none, the base's own.

    An adapter is given attached, as its bytes, or as its folder, and must have been made for this
    base: nothing is trained on top of a merged model here. Raises AdapterError.
    """
    model = base_model
    for adapter in adapters:
        source = adapter.to_safetensors() if isinstance(adapter, Adapter) else adapter
        model = load_adapter(model, source).merged()
    return model
