"""Log-mel of audio that is still arriving: each frame is computed once, as soon as it is whole.

A frame needs 400 samples around its centre, so at any moment all but the last frame or two of the
batch computation are final; those are kept, and `window` adds the few that reach into the silence
after the last sample. Only Whisper's compression depends on the whole clip (its peak): it is one
comparison a number and is redone. The result equals `features.log_mel` of the same samples.

Shape suffixes: B batch (one), N samples, M mel bins, T mel frames (10 ms).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from model_core.audio import RATE_HZ
from model_core.features import (
    EDGE_SAMPLES,
    FFT_SAMPLES,
    HOP_SAMPLES,
    MAX_WINDOW_S,
    compress,
    log_mel,
    log_power,
    require_fits,
    window_frames,
)

_MAX_SAMPLES = int(MAX_WINDOW_S * RATE_HZ)


class StreamingMel:
    """Features of one utterance of at most 30 s, 16 kHz mono, pushed in pieces of any length.

    Memory is bounded by the 30 s. Start a new one for the next utterance.
    """

    def __init__(self, mel_bins: int = 80) -> None:
        self._mel_bins = mel_bins
        self._final: list[Tensor] = []  # [1, M, T] each
        self._tail_N = torch.zeros(0)  # samples that frames not yet final need
        self._samples = 0

    @property
    def duration_s(self) -> float:
        """Seconds pushed so far."""
        return self._samples / RATE_HZ

    def push(self, samples_N: Tensor) -> None:
        """Take the next samples. Raises AudioError (audio-too-long) beyond 30 s."""
        require_fits(self._samples + len(samples_N), MAX_WINDOW_S)
        started = self._samples > EDGE_SAMPLES
        self._samples += len(samples_N)
        self._tail_N = torch.cat([self._tail_N, samples_N])
        if not started:
            if self._samples <= EDGE_SAMPLES:
                return
            reflected_N = self._tail_N[1 : EDGE_SAMPLES + 1].flip(0)
            self._tail_N = torch.cat([reflected_N, self._tail_N])
        whole = (len(self._tail_N) - FFT_SAMPLES) // HOP_SAMPLES + 1
        if whole > 0:
            used_N = self._tail_N[: (whole - 1) * HOP_SAMPLES + FFT_SAMPLES]
            self._final.append(log_power(used_N[None], self._mel_bins))
            self._tail_N = self._tail_N[whole * HOP_SAMPLES :].clone()

    def window(self, duration_s: float) -> Tensor:
        """The features of what was pushed, followed by silence up to `duration_s`: [1, M, T].

        Raises AudioError (audio-too-long) where the window would cut what was pushed.
        """
        frames = window_frames(duration_s)
        require_fits(self._samples, duration_s)
        if self._samples <= EDGE_SAMPLES:
            return log_mel([self._tail_N], duration_s, self._mel_bins)
        length = min(frames * HOP_SAMPLES + FFT_SAMPLES, _MAX_SAMPLES)
        tail_N = functional.pad(self._tail_N, (0, length - self._samples))
        reflected_N = tail_N[-EDGE_SAMPLES - 1 : -1].flip(0)
        rest_1MT = log_power(torch.cat([tail_N, reflected_N])[None], self._mel_bins)
        return compress(torch.cat([*self._final, rest_1MT], dim=-1)[..., :frames])
