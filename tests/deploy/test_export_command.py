"""`auricle base export` and `auricle transcribe --engine`, on a random model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile
import torch

from deploy.cli import main as cli
from model_core.base import rebased, save_base
from model_core.export.folder import load_onnx
from model_core.nano import nano_base


@pytest.fixture
def base_folder(tmp_path: Path) -> Path:
    """The nano mixture with one layer a side: an export takes seconds for each layer."""
    base = nano_base()
    for part in ("encoder", "decoder"):
        stack = getattr(base.model.model, part)
        stack.layers = stack.layers[:1]
        setattr(base.model.config, f"{part}_layers", 1)
    save_base(rebased(base, base.model), tmp_path / "base")
    return tmp_path / "base"


def fields(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    (line,) = capsys.readouterr().out.splitlines()
    read = json.loads(line)
    assert isinstance(read, dict)
    return read


@pytest.mark.slow
def test_export_and_transcribe(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sound = tmp_path / "exported", tmp_path / "visit.wav"
    words = ["base", "export", str(out), "--folder", str(base_folder), "--int8", "--json"]
    assert cli.run(words) == 0
    made = fields(capsys)
    assert (made["precision"], made["release"]) == ("int8", None)
    assert load_onnx(out).mel_bins == 80

    swell = torch.linspace(0, 0.5, 32_000) * torch.randn(32_000)
    soundfile.write(sound, swell.numpy(), 16_000)
    assert cli.run(["transcribe", str(sound), "--engine", str(out), "--json"]) == 0
    (result,) = fields(capsys)["results"]  # type: ignore[misc]
    assert result["duration_s"] == pytest.approx(2.0)
    assert result["release"] is None

    assert cli.run(words) == 24
    assert fields(capsys)["error"]["code"] == "onnx-folder"  # type: ignore[index]


def test_what_is_no_export_or_no_base_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["transcribe", "visit.wav", "--engine", str(tmp_path), "--json"]
    assert cli.run(words) == 24
    assert fields(capsys)["error"]["code"] == "onnx-folder"  # type: ignore[index]
    words = ["base", "export", str(tmp_path / "out"), "--folder", str(tmp_path), "--json"]
    assert cli.run(words) == 20
    assert fields(capsys)["error"]["code"] == "base-missing"  # type: ignore[index]
