"""PCM in pieces: however the bytes are split, the samples are the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_node.live.errors import LiveError
from client_node.live.pcm import ENCODINGS, RATE_HZ, PcmReader


def written(samples_N: np.ndarray, encoding: str) -> bytes:
    if encoding == "s16le":
        return (samples_N * 32767).astype("<i2").tobytes()
    return samples_N.astype("<f4").tobytes()


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ENCODINGS),
    st.sampled_from([8_000, 16_000, 44_100, 48_000, 192_000]),
    st.lists(st.integers(0, 700), max_size=12),
)
def test_samples_do_not_depend_on_how_the_bytes_are_split(encoding, rate_hz, cuts):
    at_s = np.arange(rate_hz // 20) / rate_hz
    data = written(0.5 * np.sin(2 * np.pi * 440 * at_s), encoding)
    whole = PcmReader(encoding, rate_hz)
    expected = np.concatenate([whole.read(data), whole.finish()])
    split, pieces, start = PcmReader(encoding, rate_hz), [], 0
    for length in cuts:
        pieces.append(split.read(data[start : start + length]))
        start += length
    pieces += [split.read(data[start:]), split.finish()]
    np.testing.assert_allclose(np.concatenate(pieces), expected, atol=1e-6)
    assert abs(len(expected) / RATE_HZ - 0.05) < 0.001


def test_a_tone_keeps_its_pitch_and_level_at_any_rate():
    for rate_hz in (8_000, 16_000, 22_050, 48_000):
        at_s = np.arange(rate_hz) / rate_hz
        reader = PcmReader("f32le", rate_hz)
        data = written(0.25 * np.sin(2 * np.pi * 1000 * at_s), "f32le")
        samples_N = np.concatenate([reader.read(data), reader.finish()])
        spectrum = np.abs(np.fft.rfft(samples_N[:RATE_HZ]))
        assert abs(int(spectrum.argmax()) - 1000) <= 1
        assert np.abs(samples_N[1000:-1000]).max() == pytest.approx(0.25, rel=0.02)


def test_what_is_no_audio_is_refused():
    with pytest.raises(LiveError, match="not known") as raised:
        PcmReader("mp3", 16_000)
    assert raised.value.code == "stream-encoding"
    for rate_hz in (0, -1, 7_999, 192_001):
        with pytest.raises(LiveError) as raised:
            PcmReader("s16le", rate_hz)
        assert raised.value.code == "stream-rate"
    reader = PcmReader("f32le", 16_000)
    with pytest.raises(LiveError) as raised:
        reader.read(np.array([0.0, np.nan], "<f4").tobytes())
    assert raised.value.code == "stream-samples"
    reader = PcmReader("s16le", 16_000)
    assert len(reader.read(b"\x00\x00\x00")) == 1
    with pytest.raises(LiveError, match="within a sample"):
        reader.finish()


def test_floats_beyond_full_scale_are_clipped():
    samples_N = PcmReader("f32le", 16_000).read(np.array([-9.0, 0.5, 1e30], "<f4").tobytes())
    assert samples_N.tolist() == [-1.0, 0.5, 1.0]
