"""The confined decoder: what it reads, what it refuses, and what a file cannot make it do."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_node.decoding.decoder import RecordingDecoder
from client_node.decoding.job import DecodeLimits
from model_core.audio import read_audio
from model_core.errors import AudioError
from tests.client_node.http_harness import speechlike, wav
from tests.client_node.sounds import HEARD, RAW, REFUSED, encoded, ten_hours

SEEDS = (wav(speechlike(0.2)), encoded("flac", "flac", 16_000), encoded("ogg", "libopus", 48_000))


@pytest.fixture(scope="module")
def decoder() -> Iterator[RecordingDecoder]:
    with RecordingDecoder() as decoder:
        yield decoder


def decode(decoder: RecordingDecoder, data: bytes, raw: str | None = None) -> torch.Tensor:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        with decoder.decode(file, raw=raw) as recording:
            return recording.read(0, recording.samples)


@pytest.mark.parametrize("name", HEARD)
def test_is_heard(decoder: RecordingDecoder, tmp_path: Path, name: str) -> None:
    data = HEARD[name]()
    samples = decode(decoder, data)
    assert 9_000 < len(samples) < 17_500
    assert 0.03 < float(samples.square().mean().sqrt()) < 0.3
    (tmp_path / "same").write_bytes(data)
    torch.testing.assert_close(samples, read_audio(tmp_path / "same"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", RAW)
def test_telephony_without_a_container_is_heard(decoder: RecordingDecoder, name: str) -> None:
    raw, make = RAW[name]
    samples = decode(decoder, make(), raw)
    assert abs(len(samples) - 16_000) < 500
    assert 0.05 < float(samples.square().mean().sqrt()) < 0.3


@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_by_its_code(decoder: RecordingDecoder, name: str) -> None:
    with pytest.raises(AudioError) as caught:
        decode(decoder, REFUSED[name]())
    empty = name in {"0 bytes", "header only"}
    assert caught.value.code == ("audio-empty" if empty else "audio-unreadable")


def test_loud_samples_are_turned_down_as_a_whole(decoder: RecordingDecoder) -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as output:
        stream = output.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(40 * speechlike(1.0)[None], "flt", "mono")
        frame.sample_rate = 16_000
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    samples = decode(decoder, file.getvalue())
    expected = torch.from_numpy(speechlike(1.0))
    torch.testing.assert_close(samples, expected / expected.abs().max(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("limits", "code"),
    [
        (DecodeLimits(duration_s=600.0), "audio-too-long"),
        (DecodeLimits(wall_s=0.001), "audio-too-costly"),
        (DecodeLimits(memory_bytes=0), "audio-too-costly"),
    ],
)
def test_limits_hold_and_the_next_recording_is_heard(limits: DecodeLimits, code: str) -> None:
    with RecordingDecoder(limits) as decoder:
        with pytest.raises(AudioError) as caught:
            decode(decoder, ten_hours())
        assert caught.value.code in {code, "audio-unreadable"}
        assert caught.value.code == code or limits.memory_bytes == 0
        process = decoder._process
        assert process is not None
        assert process.poll() is None  # the warm process has outlived its fork


def test_a_warm_process_that_was_killed_is_replaced() -> None:
    with RecordingDecoder() as decoder:
        assert len(decode(decoder, SEEDS[0]))
        process = decoder._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert len(decode(decoder, SEEDS[0]))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = psutil.Process().num_fds()
    with RecordingDecoder() as decoder:
        for make in (*HEARD.values(), *REFUSED.values()):
            try:
                decode(decoder, make())
            except AudioError:
                continue
        process = psutil.Process(decoder._process.pid)  # type: ignore[union-attr]
        assert list(tmp_path.iterdir()) == []
        assert process.num_fds() <= 8
    assert not process.is_running()
    assert psutil.Process().num_fds() == files


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.sampled_from(SEEDS),
    changes=st.lists(st.tuples(st.integers(0, 4_000), st.integers(0, 255)), max_size=30),
    keep=st.integers(1, 40_000),
)
def test_damaged_files_are_heard_or_refused_and_never_more(
    decoder: RecordingDecoder, seed: bytes, changes: list[tuple[int, int]], keep: int
) -> None:
    damaged = bytearray(seed[:keep])
    for place, value in changes:
        if place < len(damaged):
            damaged[place] = value
    try:
        samples = decode(decoder, bytes(damaged))
    except AudioError:
        return
    assert len(samples) > 0
    assert float(samples.abs().max()) <= 1.0


CONFINED = """
import json, os, socket
from client_node.decoding.job import DecodeLimits
from client_node.decoding.process import confine, load_everything

attempts = {
    "open": lambda: open("/etc/hostname"),
    "connect": socket.socket,
    "pipe": os.pipe,
    "memory": lambda: bytearray(600 * 2**20),
}
load_everything()
confine(DecodeLimits())
failed = []
for name, attempt in attempts.items():
    try:
        attempt()
    except (OSError, MemoryError):
        failed.append(name)
os.write(1, json.dumps(failed).encode())
os._exit(0)
"""


def test_a_decoder_that_were_taken_over_could_open_and_connect_to_nothing() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", CONFINED],
        env={"PYTHONPATH": str(Path(__file__).resolve().parents[2])},
        capture_output=True,
        check=True,
    )
    assert json.loads(answer.stdout) == ["open", "connect", "pipe", "memory"]
