"""A folder with an exported model: two graphs, their weights, the tokenizer and a manifest.

`onnx.json`, written last, records the precision, the SHA-256 of every file, and which weights they
were made from; loading verifies the files. There is no code in the folder: ONNX graphs are data.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from model_core.base import SpeechBase
from model_core.errors import ExportError
from model_core.export.graph import DECODER, ENCODER, export_decoder, export_encoder
from model_core.export.quantise import quantise_decoder, quantise_encoder
from model_core.export.runtime import DecoderShape, OnnxSpeech, open_session
from model_core.tokens import SpeechTokenizer
from model_core.upcycle import base_sha256
from model_core.weights import DecodingRules, file_sha256

Precision = Literal["float32", "int8"]
ONNX_FORMAT = "auricle/onnx/v1"
MANIFEST = "onnx.json"
_TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Exported:
    """What an export made.

    Attributes:
        folder: where it lies.
        precision: of the weight matrices.
        weights_sha256: `base_sha256` of the weights that were exported.
        size_bytes: of the graphs and their weights; the tokenizer is not counted.
    """

    folder: Path
    precision: Precision
    weights_sha256: str
    size_bytes: int


def export_onnx(base: SpeechBase, folder: Path) -> Exported:
    """Write a base, dense or mixture, in float32 to a new or empty folder for `load_onnx`.

    To export an adapter with it, give `rebased(base, adapter.merged())`. Raises ExportError
    (onnx-folder) if the folder has something in it.
    """
    _require_empty(folder)
    export_encoder(base.model, folder / ENCODER)
    export_decoder(base.model, folder / DECODER)
    base.tokenizer.save(folder / _TOKENIZER)
    config = base.model.config
    heads = config.decoder_attention_heads
    fields = {
        "format": ONNX_FORMAT,
        "precision": "float32",
        "weights_sha256": base_sha256(base.model),
        "multilingual": base.tokenizer.multilingual,
        "mel_bins": config.num_mel_bins,
        "decoder": dataclasses.asdict(
            DecoderShape(config.decoder_layers, heads, config.d_model // heads)
        ),
        "decoding": dataclasses.asdict(base.rules),
    }
    return _finish(folder, fields)


def quantise_onnx(source: Path, folder: Path) -> Exported:
    """Write an exported float32 folder in INT8 to a new or empty folder.

    Raises ExportError: as `load_onnx` for the source, `onnx-folder` if the target has something in
    it, `onnx-malformed` if the source is quantised already or a weight matrix stayed as it was.
    """
    fields = _read_manifest(source)
    if fields["precision"] != "float32":
        raise ExportError(
            f"{source} is quantised already", remedy="quantise the float32 export of the model"
        )
    _require_empty(folder)
    with tempfile.TemporaryDirectory(prefix="auricle-", dir=folder) as scratch:
        quantise_encoder(source / ENCODER, folder / ENCODER, Path(scratch))
    quantise_decoder(source / DECODER, folder / DECODER)
    shutil.copyfile(source / _TOKENIZER, folder / _TOKENIZER)
    return _finish(folder, {**fields, "precision": "int8"})


def load_onnx(folder: Path, threads: int | None = None) -> OnnxSpeech:
    """Load an exported folder after verifying its files. `threads` None: one per physical core.

    Raises ExportError: `onnx-folder` if there is no export, `onnx-checksum` if a file is not the
    one that was written, `onnx-malformed` if the manifest cannot be read.
    """
    manifest = _read_manifest(folder)
    try:
        shape = DecoderShape(**manifest["decoder"])
        rules = DecodingRules.from_fields(manifest["decoding"])
        multilingual, mel_bins = bool(manifest["multilingual"]), int(manifest["mel_bins"])
    except (KeyError, TypeError, ValueError) as error:
        raise _unreadable(folder, error) from error
    return OnnxSpeech(
        encoder=open_session(str(folder / ENCODER), threads),
        decoder=open_session(str(folder / DECODER), threads),
        shape=shape,
        tokenizer=SpeechTokenizer.from_file(folder / _TOKENIZER, multilingual=multilingual),
        rules=rules,
        mel_bins=mel_bins,
    )


def _require_empty(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} is not empty", remedy="name a new folder", code="onnx-folder")
    folder.mkdir(parents=True, exist_ok=True)


def _finish(folder: Path, fields: dict[str, Any]) -> Exported:
    """Write the manifest over all files; it comes last, so a folder that has one is whole."""
    names = sorted(path.name for path in folder.iterdir())
    files = {name: file_sha256(folder / name) for name in names}
    text = json.dumps({**fields, "files": files}, indent=2, sort_keys=True)
    (folder / MANIFEST).write_text(text, encoding="utf-8")
    size_bytes = sum((folder / name).stat().st_size for name in names if name != _TOKENIZER)
    return Exported(folder, fields["precision"], fields["weights_sha256"], size_bytes)


def _read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder whose files are all as they were written. Raises ExportError."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != ONNX_FORMAT or manifest["precision"] not in get_args(Precision):
            raise ValueError(f"{manifest['format']}, {manifest['precision']}")
        files = {str(name): str(sha256) for name, sha256 in manifest["files"].items()}
    except FileNotFoundError as error:
        raise ExportError(
            f"{folder} holds no exported model",
            remedy="make one with `auricle base export`",
            code="onnx-folder",
        ) from error
    except (KeyError, TypeError, ValueError, AttributeError, OSError) as error:
        raise _unreadable(folder, error) from error
    for name in {ENCODER, DECODER, _TOKENIZER, *files}:
        _verify(folder, name, files.get(name))
    return cast(dict[str, Any], manifest)


def _unreadable(folder: Path, error: Exception) -> ExportError:
    return ExportError(
        f"{folder / MANIFEST} cannot be read: {type(error).__name__}: {error}",
        remedy="export the model again",
    )


def _verify(folder: Path, name: str, sha256: str | None) -> None:
    # A name with a path in it would point outside the folder.
    path = folder / name
    whole = sha256 is not None and Path(name).name == name and path.is_file()
    if not whole or file_sha256(path) != sha256:
        raise ExportError(
            f"{path} is missing or is not the file that was exported",
            remedy="copy the folder again, or export the model again",
            code="onnx-checksum",
        )
