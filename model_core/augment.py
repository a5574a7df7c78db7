"""Training augmentation in which a recording's chances are its own.

Noise at a drawn signal-to-noise ratio, speed perturbation (Ko et al. 2015) and SpecAugment's masks
(Park et al. 2019). Every draw comes from a generator seeded by the recording's own key, which names
its subject, never from a stream that a batch shares: what happens to a subject is the same alone
and in any company, as a per-subject gradient's sensitivity demands.

Shape suffixes: N samples, M mel bins, T mel frames (10 ms).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import soxr
import torch
from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.features import HOP_SAMPLES

_SEED_BYTES = 8


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a recording; the defaults are mild, and `Augmentation.none()` is nothing.

    Attributes:
        noise_probability: chance of added noise.
        snr_db: lowest and highest ratio of speech to noise power.
        noise_slope: lowest and highest exponent s of the noise's power spectrum 1 ÷ fˢ: 0 is
            white, 1 pink (rooms), 2 brown (traffic).
        speeds: factors of tempo and pitch, one of which is drawn.
        frequency_masks: how many bands of mel bins are blanked.
        frequency_width: at most so many bins each.
        time_masks: how many stretches of the recording are blanked.
        time_fraction: each at most this part of the recording, and at most 1 s.
        seed: of a run; another seed augments otherwise.
    """

    noise_probability: float = 0.5
    snr_db: tuple[float, float] = (5.0, 30.0)
    noise_slope: tuple[float, float] = (0.0, 2.0)
    speeds: tuple[float, ...] = (0.9, 1.0, 1.1)
    frequency_masks: int = 2
    frequency_width: int = 15
    time_masks: int = 2
    time_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ValueError for values out of range."""
        ranges = (self.snr_db, self.noise_slope)
        shares = (self.noise_probability, self.time_fraction)
        counts = (self.frequency_masks, self.frequency_width, self.time_masks)
        if not (
            all(low <= high for low, high in ranges)
            and all(0 <= share <= 1 for share in shares)
            and all(count >= 0 for count in counts)
            and self.speeds
            and all(0.5 <= speed <= 2 for speed in self.speeds)
        ):
            raise ValueError(f"augmentation out of range: {self}")

    @classmethod
    def none(cls) -> Augmentation:
        """Leaves every recording as it is."""
        return cls(noise_probability=0.0, speeds=(1.0,), frequency_masks=0, time_masks=0)

    def waveform(self, samples_N: Tensor, key: str) -> Tensor:
        """The recording at another speed and with noise: float32, 16 kHz, of its own new length.

        `key` names subject, recording and pass, such as "subject/recording/round".
        """
        generator = self._generator("waveform", key)
        speed = self.speeds[int(torch.randint(len(self.speeds), (1,), generator=generator))]
        noisy = _uniform(0, 1, generator) < self.noise_probability
        if speed != 1.0 and len(samples_N):
            changed = soxr.resample(samples_N.numpy(), RATE_HZ * speed, RATE_HZ)
            samples_N = torch.from_numpy(changed)
        if not noisy or not len(samples_N):
            return samples_N
        snr_db = _uniform(*self.snr_db, generator)
        slope = _uniform(*self.noise_slope, generator)
        noise_N = coloured_noise(len(samples_N), slope, generator)
        return samples_N + noise_N * samples_N.square().mean().sqrt() * 10 ** (-snr_db / 20)

    def spectrum(self, mel_MT: Tensor, samples: int, key: str) -> Tensor:
        """Features with bands and stretches set to their own mean, within the recording's frames.

        `samples` is the recording's length after `waveform`: the window's silence is not masked.
        """
        generator = self._generator("spectrum", key)
        bins, window_frames = mel_MT.shape
        frames = min(samples // HOP_SAMPLES, window_frames)
        masked_MT, blank = mel_MT.clone(), mel_MT[:, : max(frames, 1)].mean()
        for _ in range(self.frequency_masks):
            start, end = _span(bins, min(self.frequency_width, bins), generator)
            masked_MT[start:end, :frames] = blank
        longest = min(int(self.time_fraction * frames), RATE_HZ // HOP_SAMPLES)
        for _ in range(self.time_masks):
            start, end = _span(frames, longest, generator)
            masked_MT[:, start:end] = blank
        return masked_MT

    def _generator(self, step: str, key: str) -> torch.Generator:
        name = f"{self.seed}\0{step}\0{key}".encode()
        digest = hashlib.sha256(name).digest()[:_SEED_BYTES]
        # A seed is a signed number of 64 bits.
        return torch.Generator().manual_seed(int.from_bytes(digest, "little", signed=True))


def coloured_noise(samples: int, slope: float, generator: torch.Generator) -> Tensor:
    """Gaussian noise of unit power whose power spectrum falls as 1 ÷ f^slope: float32 [N]."""
    white_F = torch.fft.rfft(torch.randn(samples, generator=generator))
    frequency_F = torch.arange(len(white_F)).clamp(min=1)
    noise_N: Tensor = torch.fft.irfft(white_F * frequency_F ** (-slope / 2), n=samples)
    return noise_N / noise_N.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand(1, generator=generator))


def _span(length: int, widest: int, generator: torch.Generator) -> tuple[int, int]:
    """A stretch of up to `widest` within `length`."""
    width = int(torch.randint(widest + 1, (1,), generator=generator))
    start = int(torch.randint(max(length - width, 0) + 1, (1,), generator=generator))
    return start, start + width
