"""Features of arriving audio are those of the whole, however it is cut."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core import streaming_mel
from model_core.audio import RATE_HZ
from model_core.errors import AudioError
from model_core.features import log_mel, log_power
from model_core.streaming_mel import StreamingMel


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.one_of(st.integers(0, 450), st.integers(0, 20_000)), max_size=8),
    spare_s=st.floats(0, 3),
    mel_bins=st.sampled_from([80, 128]),
)
def test_incremental_equals_batch_after_every_piece(pieces, spare_s, mel_bins):
    generator = torch.Generator().manual_seed(sum(pieces))
    stream, heard = StreamingMel(mel_bins), torch.zeros(0)
    for index, samples in enumerate(pieces):
        piece = torch.randn(samples, generator=generator) * 0.1 * (index + 1)
        stream.push(piece)
        heard = torch.cat([heard, piece])
        window_s = len(heard) / RATE_HZ + spare_s + 0.05
        expected = log_mel([heard], window_s, mel_bins)
        torch.testing.assert_close(stream.window(window_s), expected, rtol=0, atol=1e-5)
    assert stream.duration_s == len(heard) / RATE_HZ


def test_full_window_has_whispers_reflected_edge():
    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(30 * RATE_HZ, generator=generator) * 0.1
    stream = StreamingMel()
    for piece in clip.split(5_000):
        stream.push(piece)
    torch.testing.assert_close(stream.window(30.0), log_mel([clip], 30.0), rtol=0, atol=1e-5)
    with pytest.raises(AudioError) as caught:
        stream.push(clip[:1])
    assert caught.value.code == "audio-too-long"


def test_each_frame_is_computed_once(monkeypatch):
    """Work grows with what is new, not with what has been heard."""
    frames = []

    def counted(samples_BN, mel_bins):
        made = log_power(samples_BN, mel_bins)
        frames.append(made.shape[-1])
        return made

    monkeypatch.setattr(streaming_mel, "log_power", counted)
    stream = StreamingMel()
    for _ in range(100):
        stream.push(torch.zeros(1_600))
    assert sum(frames) <= 1_000


def test_window_that_would_cut_what_was_heard_is_refused():
    stream = StreamingMel()
    stream.push(torch.zeros(2 * RATE_HZ))
    with pytest.raises(AudioError) as caught:
        stream.window(1.0)
    assert caught.value.code == "audio-too-long"
