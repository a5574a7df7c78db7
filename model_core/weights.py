"""How a dense Whisper is loaded from a checkpoint's files, and the rules it decodes by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from model_core.convert import convert_ctranslate2
from model_core.errors import WeightsError
from model_core.sources import Checkpoint, file_sha256, resolve_checkpoint
from model_core.tokens import SpeechTokenizer

__all__ = [
    "Checkpoint",
    "DecodingRules",
    "Whisper",
    "file_sha256",
    "load_whisper",
    "resolve_checkpoint",
]

_FIRST_MULTILINGUAL_VOCABULARY = 51865  # OpenAI's rule: English-only checkpoints have one less


@dataclass(frozen=True)
class DecodingRules:
    """What a checkpoint says about decoding.

    Attributes:
        suppress: token ids that the decoder must not write anywhere.
        begin_suppress: those that it must not write first.
        alignment_heads: (layer, head) whose cross-attention follows the words in time; empty
            where the checkpoint does not say.
    """

    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()
    alignment_heads: tuple[tuple[int, int], ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """From JSON. Raises TypeError or ValueError on anything but lists of integers.

        A base of before there were alignment heads is read as one that names none.
        """
        names = {"suppress", "begin_suppress"}
        if set(fields) - {"alignment_heads"} != names:
            raise ValueError(f"decoding rules have fields {sorted(fields)}")
        tokens = {name: tuple(int(token) for token in fields[name]) for name in names}
        return cls(**tokens, alignment_heads=_pairs(fields.get("alignment_heads")))


def _pairs(heads: Any) -> tuple[tuple[int, int], ...]:
    return tuple((int(layer), int(head)) for layer, head in heads or ())


@dataclass(frozen=True)
class Whisper:
    """A dense Whisper in float32, evaluation mode, with its tokens and decoding rules."""

    model: WhisperForConditionalGeneration
    tokenizer: SpeechTokenizer
    rules: DecodingRules


def load_whisper(checkpoint: Checkpoint) -> Whisper:
    """Load a checkpoint of either format; both give identical logits. Raises WeightsError."""
    try:
        if checkpoint.format == "ct2":
            return _load_ctranslate2(checkpoint)
        return _load_hugging_face(checkpoint)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise WeightsError(
            f"the checkpoint in {checkpoint.folder} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            remedy="download the checkpoint again, or give another folder",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise TypeError(f"{path.name} is not a JSON object")
    return fields


def _load_hugging_face(checkpoint: Checkpoint) -> Whisper:
    folder = checkpoint.folder
    config_fields = _read_json(folder / "config.json")
    config = WhisperConfig(**config_fields)
    generation_path = folder / "generation_config.json"
    # Checkpoints older than generation configs keep the lists in config.json.
    rules_fields = _read_json(generation_path) if generation_path.is_file() else config_fields
    rules = DecodingRules(
        tuple(rules_fields.get("suppress_tokens") or ()),
        tuple(rules_fields.get("begin_suppress_tokens") or ()),
        _pairs(rules_fields.get("alignment_heads")),
    )
    state = {
        name: tensor.float()
        for file in checkpoint.files
        for name, tensor in load_file(file).items()
    }
    _require_tied(state)
    return _assemble(config, state, rules, folder)


def _require_tied(state: Mapping[str, torch.Tensor]) -> None:
    projection = state.get("proj_out.weight")
    if projection is not None and not torch.equal(
        projection, state["model.decoder.embed_tokens.weight"]
    ):
        raise ValueError("its output projection is not its token embeddings, as Whisper's is")


def _load_ctranslate2(checkpoint: Checkpoint) -> Whisper:
    config, state = convert_ctranslate2(checkpoint.files)
    fields = _read_json(checkpoint.folder / "config.json")
    rules = DecodingRules(
        tuple(fields.get("suppress_ids") or ()),
        tuple(fields.get("suppress_ids_begin") or ()),
        _pairs(fields.get("alignment_heads")),
    )
    return _assemble(config, state, rules, checkpoint.folder)


def _assemble(
    config: WhisperConfig, state: dict[str, torch.Tensor], rules: DecodingRules, folder: Path
) -> Whisper:
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    multilingual = config.vocab_size >= _FIRST_MULTILINGUAL_VOCABULARY
    tokenizer = SpeechTokenizer.from_file(folder / "tokenizer.json", multilingual=multilingual)
    return Whisper(model.requires_grad_(False).eval(), tokenizer, rules)
