"""`auricle base distil`: recordings in, a base that loads and transcribes out."""

import json
import subprocess
import sys

import pytest
import soundfile as sf
import torch
from typer.testing import CliRunner

from deploy.cli.main import app
from deploy.distillation import training_recordings
from model_core.base import load_base
from model_core.nano import write_nano_checkpoint
from model_core.transcribe import Transcriber


@pytest.fixture
def audio(tmp_path):
    folder = tmp_path / "audio"
    (folder / "deeper").mkdir(parents=True)
    for number, name in enumerate(("b.wav", "a.flac", "deeper/c.wav")):
        samples = 0.1 * torch.randn(8_000 + 1_000 * number)
        sf.write(folder / name, samples.numpy(), 16_000)
    (folder / "notes.txt").write_text("no audio")
    return folder


def test_recordings_come_in_one_order_from_files_and_folders(audio):
    lengths = [len(each) for each in training_recordings([audio, audio / "b.wav"], 0)]
    assert lengths == [9_000, 8_000, 10_000, 8_000]


def test_synthetic_speakers_are_the_same_in_every_run():
    """A resumed run is refused where they are not; the synthesiser's state is the process's."""
    program = (
        "import hashlib; from deploy.distillation import training_recordings\n"
        "for each in training_recordings([], 2):\n"
        "    print(len(each), hashlib.sha256(each.numpy().tobytes()).hexdigest())"
    )
    first, second = (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout == second.stdout
    assert [int(line.split()[0]) > 8_000 for line in first.stdout.splitlines()] == [True, True]


def test_command_leaves_a_base_that_loads(audio, tmp_path):
    source, folder = write_nano_checkpoint(tmp_path / "nano"), tmp_path / "out"
    command = ["base", "distil", str(audio), "--source", str(source), "--folder", str(folder)]
    command += ["--steps", "2", "--batch", "2", "--margin-s", "1", "--top-k", "2", "--json"]
    answer = CliRunner().invoke(app, command, catch_exceptions=False)
    assert answer.exit_code == 0
    fields = json.loads(answer.stdout)
    base = load_base(folder / "base", fields["base_sha256"])
    assert (base.mixture.top_k, base.mixture.decoder_top_k) == (2, 8)
    assert fields["delta_bytes"] < 100_000
    assert isinstance(Transcriber(base).transcribe(0.1 * torch.randn(8_000)).text, str)
