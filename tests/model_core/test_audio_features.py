"""Recordings in, features out: faults have names, features are Whisper's own."""

import contextlib

import av
import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import WhisperFeatureExtractor

from model_core.audio import RATE_HZ, read_audio
from model_core.errors import AudioError
from model_core.features import cut_window_s, encode_mel, log_mel, window_frames, window_s


def tone(seconds: float, rate_hz: int) -> np.ndarray:
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * 440 * t)).astype(np.float32)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_any_rate_and_channels_become_16_khz_mono(tmp_path, rate_hz, channels, suffix):
    samples = np.stack([tone(1.0, rate_hz)] * channels, axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", samples, rate_hz)
    decoded = read_audio(tmp_path / f"a.{suffix}")
    assert decoded.dtype == torch.float32
    assert abs(len(decoded) - RATE_HZ) <= 2
    middle = slice(2_000, 14_000)
    expected = torch.from_numpy(tone(1.0, RATE_HZ))
    torch.testing.assert_close(decoded[middle], expected[middle], rtol=0, atol=2e-3)


def test_compressed_container(tmp_path):
    path = tmp_path / "a.m4a"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=RATE_HZ, layout="mono")
        frame = av.AudioFrame.from_ndarray(tone(1.0, RATE_HZ)[None], "fltp", "mono")
        frame.sample_rate = RATE_HZ
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    decoded = read_audio(path)
    assert abs(len(decoded) - RATE_HZ) < 2_500
    assert 0.3 < decoded[4_000:12_000].square().mean().sqrt() < 0.4


@pytest.mark.parametrize("fault", ["missing", "zero-bytes", "no-samples", "text", "folder", "nan"])
def test_faults_have_codes(tmp_path, fault):
    path = tmp_path / "a.wav"
    code = {"missing": "audio-missing", "folder": "audio-missing", "text": "audio-unreadable"}
    code["nan"] = "audio-unreadable"
    if fault == "zero-bytes":
        path.write_bytes(b"")
    elif fault == "no-samples":
        soundfile.write(path, np.zeros(0, np.float32), RATE_HZ)
    elif fault == "nan":
        samples = tone(0.1, RATE_HZ)
        samples[7] = np.nan
        soundfile.write(path, samples, RATE_HZ, subtype="FLOAT")
    elif fault == "text":
        path.write_text("this is no sound")
    elif fault == "folder":
        path.mkdir()
    with pytest.raises(AudioError) as caught:
        read_audio(path)
    assert caught.value.code == code.get(fault, "audio-empty")
    assert str(path) in caught.value.problem
    assert caught.value.remedy


def test_truncated_file_is_read_or_refused_cleanly(tmp_path):
    soundfile.write(tmp_path / "whole.flac", tone(1.0, RATE_HZ), RATE_HZ)
    data = (tmp_path / "whole.flac").read_bytes()
    for length in range(1, len(data), len(data) // 12):
        (tmp_path / "cut.flac").write_bytes(data[:length])
        with contextlib.suppress(AudioError):  # anything but AudioError fails the test
            assert 0 < len(read_audio(tmp_path / "cut.flac")) <= RATE_HZ


@pytest.mark.parametrize("peak", [1e-30, 1e-4, 1.0, 30.0, 1e30])
def test_any_loudness_is_read_and_has_finite_features(tmp_path, peak):
    soundfile.write(tmp_path / "a.wav", 2 * peak * tone(0.5, 8_000), 8_000, subtype="FLOAT")
    decoded = read_audio(tmp_path / "a.wav")
    assert float(decoded.abs().max()) == pytest.approx(min(peak, 1), rel=0.05)
    features = log_mel([decoded], 1.0)
    assert torch.isfinite(features).all()
    if peak >= 1:  # turned down, not clipped: still a tone
        spectrum = torch.fft.rfft(decoded[2_000:6_000]).abs()
        assert spectrum.max() > 20 * spectrum[300:].max()


@pytest.mark.parametrize("mel_bins", [80, 128])
@pytest.mark.parametrize("window", [4.0, 29.99, 30.0])
def test_features_equal_whispers(mel_bins, window):
    generator = torch.Generator().manual_seed(0)
    clips = [torch.randn(int(n * RATE_HZ), generator=generator) * 0.1 for n in (0.5, 4.0)]
    extractor = WhisperFeatureExtractor(feature_size=mel_bins)
    expected = extractor(
        [clip.numpy() for clip in clips], sampling_rate=RATE_HZ, return_tensors="pt"
    ).input_features
    ours = log_mel(clips, window, mel_bins)
    assert ours.shape[-1] == window_frames(window)
    torch.testing.assert_close(ours, expected[..., : ours.shape[-1]], rtol=0, atol=1e-5)


def test_clips_of_a_batch_do_not_touch_each_other():
    quiet, loud = torch.randn(8_000) * 1e-3, torch.randn(30_000)
    together = log_mel([quiet, loud], 5.0)
    torch.testing.assert_close(together[:1], log_mel([quiet], 5.0), rtol=0, atol=1e-5)


def test_window_that_would_cut_a_clip_is_refused():
    with pytest.raises(AudioError) as caught:
        log_mel([torch.zeros(3 * RATE_HZ)], 2.0)
    assert caught.value.code == "audio-too-long"


@given(samples=st.integers(0, 30 * RATE_HZ))
def test_window_holds_the_clip_and_its_margin(samples):
    window = window_s(samples)
    cut = cut_window_s(samples)
    assert cut >= max(min(samples / RATE_HZ + 3.0, 30.0), 10.0)
    assert cut <= 30.0
    assert 1.0 <= window <= 30.0
    assert window >= min(samples / RATE_HZ + 1.0, 30.0)
    assert window_frames(window) % 2 == 0


def test_full_window_equals_the_stock_encoder(base):
    mel_BMT = log_mel([torch.randn(RATE_HZ) * 0.1], 30.0)
    encoder = base.model.model.encoder
    with torch.no_grad():
        stock = encoder(mel_BMT).last_hidden_state
        assert torch.equal(encode_mel(encoder, mel_BMT), stock)


@given(frames=st.integers(0, 3000))
def test_frames_survive_the_way_through_seconds(frames):
    assert window_frames(frames / 100) == frames // 2 * 2


@settings(max_examples=8, deadline=None)
@given(rows=st.integers(2, 5))
def test_encoder_rows_are_independent(base, rows):
    generator = torch.Generator().manual_seed(rows)
    clips = [torch.randn(3_000 * (i + 1), generator=generator) * 0.1 for i in range(rows)]
    encoder = base.model.model.encoder
    with torch.no_grad():
        together = encode_mel(encoder, log_mel(clips, 4.0))
        for row, clip in enumerate(clips):
            alone = encode_mel(encoder, log_mel([clip], 4.0))
            torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=1e-4)
