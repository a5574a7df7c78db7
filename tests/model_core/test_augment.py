"""Augmentation: what happens to a recording is decided by its own key, and is what was asked."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.audio import RATE_HZ
from model_core.augment import Augmentation, coloured_noise
from model_core.features import log_mel
from model_core.training import encode

HARSH = Augmentation(noise_probability=1.0, snr_db=(5.0, 5.0), time_fraction=0.3)


def clip(seed: int, samples: int = RATE_HZ) -> torch.Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), company=st.integers(1, 4))
def test_alone_equals_in_any_company(base, order, company):
    """Neither the batch, nor the order, nor the global random state has a say."""
    clips, keys = [clip(i) for i in range(4)], [f"subject-{i}/0/0" for i in range(4)]
    chosen = order[:company]
    torch.manual_seed(company)
    together = encode(base, [clips[i] for i in chosen], 2.0, HARSH, [keys[i] for i in chosen])
    for row, index in enumerate(chosen):
        alone = encode(base, [clips[index]], 2.0, HARSH, [keys[index]])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=0, atol=2e-3)  # float16


def test_keys_and_seeds_make_a_difference():
    heard = [HARSH.waveform(clip(0), key) for key in ("a/0/0", "a/0/1", "b/0/0")]
    heard.append(dataclasses.replace(HARSH, seed=1).waveform(clip(0), "a/0/0"))
    shapes_or_values = {(len(each), float(each[:100].sum())) for each in heard}
    assert len(shapes_or_values) == 4
    assert torch.equal(heard[0], HARSH.waveform(clip(0), "a/0/0"))


def test_nothing_is_nothing(base):
    none = Augmentation.none()
    assert torch.equal(none.waveform(clip(0), "a"), clip(0))
    plain = encode(base, [clip(0)], 2.0)
    assert torch.equal(encode(base, [clip(0)], 2.0, none, ["a"]), plain)


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 30.0])
def test_noise_has_the_ratio_asked_for(snr_db):
    wanted = Augmentation(noise_probability=1.0, snr_db=(snr_db, snr_db), speeds=(1.0,))
    speech = clip(0)
    noise = wanted.waveform(speech, "a") - speech
    measured_db = 10 * torch.log10(speech.square().mean() / noise.square().mean())
    assert float(measured_db) == pytest.approx(snr_db, abs=0.05)


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_noise_has_the_colour_asked_for(slope):
    noise = coloured_noise(1 << 16, slope, torch.Generator().manual_seed(0))
    assert float(noise.square().mean()) == pytest.approx(1, abs=1e-3)
    power = torch.fft.rfft(noise).abs().square()
    low, high = power[1_000:2_000].mean(), power[10_000:20_000].mean()
    assert float(torch.log10(low / high)) == pytest.approx(slope, abs=0.1)


def test_speed_changes_length_and_pitch_together():
    time_s = torch.arange(RATE_HZ) / RATE_HZ
    tone = torch.sin(2 * torch.pi * 400 * time_s)
    fast = dataclasses.replace(Augmentation.none(), speeds=(1.25,)).waveform(tone, "a")
    assert len(fast) == pytest.approx(RATE_HZ / 1.25, abs=2)
    loudest = int(torch.fft.rfft(fast).abs().argmax()) * RATE_HZ / len(fast)
    assert loudest == pytest.approx(500, abs=3)


@settings(max_examples=30, deadline=None)
@given(key=st.text(), samples=st.integers(0, 2 * RATE_HZ))
def test_masks_stay_within_the_recording_and_their_widths(key, samples):
    mel_MT = log_mel([clip(1, samples)], 3.0)[0]
    wanted = dataclasses.replace(HARSH, frequency_masks=1, time_masks=1)
    masked = wanted.spectrum(mel_MT, samples, key)
    frames = samples // 160
    assert torch.equal(masked[:, frames:], mel_MT[:, frames:])
    changed = masked[:, :frames] != mel_MT[:, :frames]
    rows, columns = changed.all(dim=1).sum(), changed.all(dim=0).sum()
    assert columns <= 0.3 * frames
    assert rows <= 15 or columns == frames
    assert changed.sum() <= rows * frames + columns * 80


def test_masks_happen():
    mel_MT = log_mel([clip(1)], 3.0)[0]
    hit = [bool((HARSH.spectrum(mel_MT, RATE_HZ, str(i)) != mel_MT).any()) for i in range(10)]
    assert sum(hit) >= 9


@pytest.mark.parametrize("samples", [0, 1, 100])
def test_recordings_of_almost_nothing_survive(samples):
    for key in "abcdef":
        heard = HARSH.waveform(clip(0, samples), key)
        assert torch.isfinite(heard).all()
    assert torch.isfinite(HARSH.waveform(torch.zeros(1_000), "a")).all()


@pytest.mark.parametrize(
    "wrong",
    [{"snr_db": (9.0, 1.0)}, {"noise_probability": 1.5}, {"speeds": ()}, {"speeds": (9.0,)}],
)
def test_values_out_of_range(wrong):
    with pytest.raises(ValueError, match="out of range"):
        Augmentation(**wrong)


def test_every_clip_needs_its_key(base):
    with pytest.raises(ValueError, match="zip"):
        encode(base, [clip(0), clip(1)], 2.0, HARSH, ["a"])
