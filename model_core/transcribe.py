"""Speech to text: short windows in batch, long recordings cut at their quietest moments.

Each clip is encoded in a window of its own length plus 3 s and at least 10 s (`features.window_s`),
not padded to 30 s. The window is rounded up to a step so that clips of like length share a batch;
it depends on the clip alone, so a transcript does not depend on what it was batched with.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.adapter import Adapter
from model_core.audio import RATE_HZ
from model_core.base import SpeechBase
from model_core.decode import greedy
from model_core.features import MAX_WINDOW_S, encode_mel, log_mel, window_s

WINDOW_STEP_S = 0.5
MAX_PIECE_S = 27.0
_MIN_PIECE_S = 15.0
_PAUSE_S = 0.2
_BATCH = 16
_SILENCE_RMS = 10 ** (-65 / 20)  # −65 dBFS: below the noise of any telephone or room
_LEVEL_SAMPLES = RATE_HZ // 50


@dataclass(frozen=True)
class Segment:
    """One window's text and where it lies in the recording, in seconds."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class Transcript:
    """A recording's text, "" where nothing was said."""

    text: str
    segments: tuple[Segment, ...]
    duration_s: float


class Transcriber:
    """Transcribes 16 kHz mono samples with the base, or with an adapter merged into it.

    `prompt_terms` are given to the decoder as preceding text, Whisper's way of naming expected
    words without training. Safe to share between threads: nothing is written after construction.
    """

    def __init__(
        self,
        base: SpeechBase,
        adapter: Adapter | None = None,
        prompt_terms: Sequence[str] = (),
        language: str = "en",
    ) -> None:
        self._base = base
        self._model = base.model if adapter is None else adapter.merged()
        self._prefix = (*base.tokenizer.prompt(prompt_terms), *base.tokenizer.prefix(language))

    def transcribe(self, samples: Tensor) -> Transcript:
        """Transcribe one recording: [N] float32 at 16 kHz, any length."""
        return self.transcribe_many([samples])[0]

    def transcribe_many(self, recordings: Sequence[Tensor]) -> list[Transcript]:
        """Transcribe recordings in batches; the result does not depend on the batching."""
        pieces = [cut_at_pauses(samples) for samples in recordings]
        clips = [
            samples[start:end]
            for samples, spans in zip(recordings, pieces, strict=True)
            for start, end in spans
        ]
        texts = iter(self._texts(clips))
        return [
            _transcript(samples, spans, [next(texts) for _ in spans])
            for samples, spans in zip(recordings, pieces, strict=True)
        ]

    def decode_states(self, states_BSD: Tensor) -> list[str]:
        """Texts of cached encoder states, such as `training.encode` gives (any float type)."""
        texts: list[str] = []
        for batch_BSD in torch.split(states_BSD, _BATCH):
            decoded = greedy(self._model, self._base, batch_BSD.float(), self._prefix)
            texts += [
                "" if each.is_silence else self._base.tokenizer.decode(each.ids) for each in decoded
            ]
        return texts

    @torch.inference_mode()
    def _texts(self, clips: Sequence[Tensor]) -> list[str]:
        texts = [""] * len(clips)
        by_window: dict[float, list[int]] = defaultdict(list)
        for index, clip in enumerate(clips):
            if not is_silent(clip):
                by_window[clip_window_s(len(clip))].append(index)
        mel_bins = self._base.model.config.num_mel_bins
        for duration_s, members in by_window.items():
            for start in range(0, len(members), _BATCH):
                batch = members[start : start + _BATCH]
                mel_BMT = log_mel([clips[index] for index in batch], duration_s, mel_bins)
                states_BSD = encode_mel(self._model.model.encoder, mel_BMT)
                for index, text in zip(batch, self.decode_states(states_BSD), strict=True):
                    texts[index] = text
        return texts


def clip_window_s(samples: int) -> float:
    """The clip's window, rounded up to the window step, at most 30 s."""
    steps = math.ceil(window_s(samples) / WINDOW_STEP_S)
    return min(steps * WINDOW_STEP_S, MAX_WINDOW_S)


def is_silent(samples: Tensor) -> bool:
    """Whether no 20 ms of the clip is louder than −65 dBFS; true for no samples at all."""
    return not len(samples) or bool((_levels(samples, _LEVEL_SAMPLES) < _SILENCE_RMS).all())


def cut_at_pauses(samples: Tensor) -> list[tuple[int, int]]:
    """Spans of at most 27 s that cover the recording, cut where 0.2 s is quietest."""
    spans: list[tuple[int, int]] = []
    start, end = 0, len(samples)
    shortest, longest = int(_MIN_PIECE_S * RATE_HZ), int(MAX_PIECE_S * RATE_HZ)
    pause = int(_PAUSE_S * RATE_HZ)
    while end - start > longest:
        levels = _levels(samples[start + shortest : start + longest], pause)
        quietest = int(levels.argmin()) * pause + pause // 2
        cut = start + shortest + quietest
        spans.append((start, cut))
        start = cut
    spans.append((start, end))
    return spans


def _levels(samples: Tensor, width: int) -> Tensor:
    """Root mean square of consecutive stretches; a last shorter one counts by its own samples."""
    return torch.stack([piece.square().mean().sqrt() for piece in torch.split(samples, width)])


def _transcript(samples: Tensor, spans: list[tuple[int, int]], texts: list[str]) -> Transcript:
    segments = tuple(
        Segment(start / RATE_HZ, end / RATE_HZ, text)
        for (start, end), text in zip(spans, texts, strict=True)
        if text
    )
    return Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration_s=len(samples) / RATE_HZ,
    )
