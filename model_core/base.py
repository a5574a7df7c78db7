"""The frozen base: one mixture-of-experts Whisper that every site and the coordinator hold.

A base folder has three files and no code: `model.safetensors` (float16 wherever that is exact,
which for Whisper checkpoints released in half precision is everywhere), `config.json` (the Whisper
configuration plus an `auricle` object: mixture, decoding rules, hash) and `tokenizer.json`.
`base_sha256` names the values in float32, the precision computed with, so it does not depend on
how they are stored.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration

from model_core.errors import WeightsError
from model_core.tokens import SpeechTokenizer
from model_core.upcycle import MixtureConfig, base_sha256, upcycle, upcycle_structure
from model_core.weights import DecodingRules, Whisper, load_whisper, resolve_checkpoint

BASE_FORMAT = "auricle/base/v1"
_MODEL, _CONFIG, _TOKENIZER = "model.safetensors", "config.json", "tokenizer.json"


@dataclass(frozen=True)
class SpeechBase:
    """The frozen model with all that is needed to run it.

    Attributes:
        model: float32, evaluation mode, no parameter requires a gradient.
        tokenizer: text to ids and back.
        rules: tokens that the decoder must not write.
        mixture: how the feed-forward blocks are split.
        base_sha256: name of these exact weights.
        checkpoint_sha256: of the dense checkpoint they were made from; "" if that is not known.
    """

    model: WhisperForConditionalGeneration
    tokenizer: SpeechTokenizer
    rules: DecodingRules
    mixture: MixtureConfig
    base_sha256: str
    checkpoint_sha256: str = ""


def make_base(whisper: Whisper, mixture: MixtureConfig) -> SpeechBase:
    """Upcycle a dense Whisper, in place, into a base."""
    model = upcycle(whisper.model, mixture)
    return SpeechBase(model, whisper.tokenizer, whisper.rules, mixture, base_sha256(model))


def rebased(base: SpeechBase, model: WhisperForConditionalGeneration) -> SpeechBase:
    """A new base around other weights of the same shape, such as `Adapter.merged()`.

    So a warm start that was trained in the open becomes part of what every site holds.
    """
    sha256 = base_sha256(model)
    return dataclasses.replace(base, model=model, base_sha256=sha256, checkpoint_sha256="")


def prepare_base(
    source: str | None, folder: Path, mixture: MixtureConfig | None = None
) -> SpeechBase:
    """Make the base in `folder` from a checkpoint, or reuse the one that is there.

    `source` is a name, a folder or a hub id (`resolve_checkpoint`); None takes the base that is
    there, whatever it was made from, and tiny.en for a new folder. Raises WeightsError
    ("base-malformed") for a folder that holds another mixture, or another checkpoint's base.
    """
    wanted = mixture or MixtureConfig()
    if (folder / _CONFIG).is_file():
        base = load_base(folder)
        if base.mixture != wanted:
            raise _other_base(folder, f"with another mixture: {base.mixture}")
        known = source is not None and base.checkpoint_sha256
        if known and resolve_checkpoint(source).sha256 != known:
            raise _other_base(folder, "that was made from another checkpoint")
        return base
    checkpoint = resolve_checkpoint(source)
    made = make_base(load_whisper(checkpoint), wanted)
    base = dataclasses.replace(made, checkpoint_sha256=checkpoint.sha256)
    save_base(base, folder)
    return base


def _other_base(folder: Path, which: str) -> WeightsError:
    return WeightsError(
        f"{folder} holds a base {which}",
        remedy="choose an empty folder, or ask for what is there",
        code="base-malformed",
    )


def open_base(model: str, mixture: MixtureConfig | None = None) -> SpeechBase:
    """A prepared base's folder, or any checkpoint (`resolve_checkpoint`) upcycled in memory.

    Raises WeightsError.
    """
    folder = Path(model)
    if (folder / _CONFIG).is_file() and "auricle" in _read_config(folder):
        return load_base(folder)
    return make_base(load_whisper(resolve_checkpoint(model)), mixture or MixtureConfig())


def save_base(base: SpeechBase, folder: Path) -> None:
    """Write the base; config.json comes last, so a folder that has one is whole."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: _smallest_exact(tensor) for name, tensor in _untied_state(base.model).items()}
    partial = folder / f"{_MODEL}.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    partial.replace(folder / _MODEL)
    base.tokenizer.save(folder / _TOKENIZER)
    config = base.model.config.to_dict()
    config.pop("_name_or_path", None)
    config["auricle"] = {
        "format": BASE_FORMAT,
        "base_sha256": base.base_sha256,
        "checkpoint_sha256": base.checkpoint_sha256,
        "mixture": dataclasses.asdict(base.mixture),
        "decoding": dataclasses.asdict(base.rules),
        "multilingual": base.tokenizer.multilingual,
    }
    text = json.dumps(config, indent=2, sort_keys=True)
    partial = folder / f"{_CONFIG}.partial"
    partial.write_text(text, encoding="utf-8")
    partial.replace(folder / _CONFIG)


def load_base(folder: Path, expected_sha256: str | None = None) -> SpeechBase:
    """Load a base folder and verify it.

    Raises WeightsError: `base-missing`, `base-malformed`, or `base-checksum` when the weights are
    not those recorded in the folder or not those that the caller expects.
    """
    config = _read_config(folder)
    try:
        ours = config.pop("auricle")
        if ours["format"] != BASE_FORMAT:
            raise ValueError(ours["format"])
        mixture = MixtureConfig(**ours["mixture"])
        rules = DecodingRules.from_fields(ours["decoding"])
        recorded = str(ours["base_sha256"])
        checkpoint = str(ours.get("checkpoint_sha256", ""))
        model = _load_model(WhisperConfig(**config), mixture, folder / _MODEL)
        multilingual = bool(ours["multilingual"])
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, SafetensorError) as error:
        raise WeightsError(
            f"the base in {folder} cannot be read: {type(error).__name__}: {error}",
            remedy="delete the folder and prepare the base again",
            code="base-malformed",
        ) from error
    tokenizer = SpeechTokenizer.from_file(folder / _TOKENIZER, multilingual=multilingual)
    actual = base_sha256(model)
    _check_sha256(folder, actual, recorded, "its own config.json records")
    if expected_sha256 is not None:
        _check_sha256(folder, actual, expected_sha256, "the job was planned for")
    return SpeechBase(model, tokenizer, rules, mixture, actual, checkpoint)


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise TypeError("config.json is not an object")
        return config
    except FileNotFoundError as error:
        raise WeightsError(
            f"there is no base in {folder}",
            remedy="prepare one there, or give the folder that holds it",
            code="base-missing",
        ) from error
    except (ValueError, TypeError, OSError) as error:
        raise WeightsError(
            f"{folder / _CONFIG} cannot be read: {error}",
            remedy="delete the folder and prepare the base again",
            code="base-malformed",
        ) from error


def _load_model(
    config: WhisperConfig, mixture: MixtureConfig, path: Path
) -> WhisperForConditionalGeneration:
    # Built without values, then given the file's: the peak is one copy of the weights in float32.
    with torch.device("meta"):
        model = upcycle_structure(WhisperForConditionalGeneration(config), mixture)
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"]
    model.load_state_dict(state, strict=True, assign=True)
    model.tie_weights()
    return model.requires_grad_(False).eval()


def _untied_state(model: WhisperForConditionalGeneration) -> dict[str, Tensor]:
    state: dict[str, Tensor] = dict(model.state_dict())
    del state["proj_out.weight"]  # tied to the token embeddings
    return state


def _smallest_exact(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half.contiguous() if torch.equal(half.float(), tensor) else tensor.contiguous()


def _check_sha256(folder: Path, actual: str, wanted: str, who: str) -> None:
    if actual != wanted:
        raise WeightsError(
            f"the base in {folder} is not the one that {who}: its weights hash to "
            f"{actual[:16]}…, not {wanted[:16]}…",
            remedy="copy the base from the coordinator, or prepare it again from the same "
            "checkpoint and mixture",
            code="base-checksum",
        )
