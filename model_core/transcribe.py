"""Speech to text: short windows in batch, long recordings cut at their quietest moments.

Each clip is encoded in a window of its own length plus 1 s (`features.window_s`), and the silence
up to Whisper's 30 s is remembered (`silent_tail`). A text that a guard doubts
(`Decoded.is_doubtful`) is made once more in a window of 30 s, and that one stands. Clips of like
length share a batch; padding is masked, so a transcript does not depend on its batch.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model_core.adapter import Adapter
from model_core.audio import RATE_HZ
from model_core.base import SpeechBase
from model_core.beam import beam_search
from model_core.cached_decoder import CachedDecoder, Precision
from model_core.decode import Decoded, greedy
from model_core.decode_rules import TokenRules
from model_core.features import (
    FRAMES_PER_S,
    FRAMES_PER_STATE,
    MAX_WINDOW_S,
    cut_window_s,
    log_mel,
    window_frames,
    window_s,
)
from model_core.int8 import int8_encoder
from model_core.silent_tail import TailedEncoder
from model_core.sound import cut_at_pauses, may_be_speech
from model_core.term_bias import TermBias
from model_core.words import Word, align

WINDOW_STEP_S = 0.5
_BATCH = 16


@dataclass(frozen=True)
class Segment:
    """One window's text and where it lies in the recording, in seconds; words if asked for."""

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class _Wish:
    """What is asked of a decoding: times of words, and terms to make likelier."""

    words: bool = False
    terms: TermBias | None = None


@dataclass(frozen=True)
class _Heard:
    """What was heard in one clip; words' times count from its own start."""

    text: str = ""
    words: tuple[Word, ...] = ()


@dataclass(frozen=True)
class Transcript:
    """A recording's text, "" where nothing was said."""

    text: str
    segments: tuple[Segment, ...]
    duration_s: float


class Transcriber:
    """Transcribes 16 kHz mono samples with the base, or with an adapter merged into it.

    `prompt_terms` are given to the decoder as preceding text, Whisper's way of naming expected
    words without training. `precision` is that of the encoder's, experts' and decoder's products,
    `beams` above 1 search more widely and slower.
    Safe to share between threads: nothing is written after construction.
    """

    def __init__(
        self,
        base: SpeechBase,
        adapter: Adapter | None = None,
        prompt_terms: Sequence[str] = (),
        language: str = "en",
        *,
        precision: Precision = "float32",
        beams: int = 1,
    ) -> None:
        self._base, self._beams = base, beams
        model = base.model if adapter is None else adapter.merged()
        encoder = model.model.encoder
        self._encoder = TailedEncoder(int8_encoder(encoder) if precision == "int8" else encoder)
        self._mel_bins = int(model.config.num_mel_bins)
        self._decoder = CachedDecoder(model, precision)
        self._prefix = (*base.tokenizer.prompt(prompt_terms), *base.tokenizer.prefix(language))

    def term_bias(self, terms: Sequence[str]) -> TermBias | None:
        """Terms to expect in a recording; None for no terms. Raises TextError for an empty one."""
        return TermBias(self._base.tokenizer, terms) if terms else None

    def transcribe(
        self, samples: Tensor, *, words: bool = False, terms: TermBias | None = None
    ) -> Transcript:
        """Transcribe one recording: [N] float32 at 16 kHz, any length; `words` asks for times."""
        return self.transcribe_many([samples], words=words, terms=terms)[0]

    @torch.inference_mode()
    def draft(self, samples: Tensor, *, terms: TermBias | None = None) -> str | None:
        """Text of at most 29 s in one look, for speech still going on; None where it is doubtful.

        What `transcribe` would look at again in a longer window is not worth showing yet.
        """
        heard = [_Heard()]
        if may_be_speech(samples) and self._hear_in(
            [samples], [0], [window_s(len(samples))], heard, _Wish(terms=terms)
        ):
            return None
        return heard[0].text

    def transcribe_many(
        self,
        recordings: Sequence[Tensor],
        *,
        words: bool = False,
        terms: TermBias | None = None,
    ) -> list[Transcript]:
        """Transcribe recordings in batches; the result does not depend on the batching.

        `terms` (`term_bias`) are made likelier in all of them.
        """
        pieces = [cut_at_pauses(samples) for samples in recordings]
        clips = [
            samples[start:end]
            for samples, spans in zip(recordings, pieces, strict=True)
            for start, end in spans
        ]
        heard = iter(self._hear(clips, _Wish(words, terms)))
        return [
            _transcript(samples, spans, [next(heard) for _ in spans])
            for samples, spans in zip(recordings, pieces, strict=True)
        ]

    def decode_states(self, states_BSD: Tensor) -> list[str]:
        """Texts of cached encoder states, such as `training.encode` gives (any float type)."""
        texts: list[str] = []
        for batch_BSD in torch.split(states_BSD, _BATCH):
            lengths = [batch_BSD.shape[1]] * len(batch_BSD)
            bias_BS = torch.zeros(batch_BSD.shape[:2])
            decoded = self._decode(batch_BSD.float(), lengths, bias_BS)
            texts += [self._text(each) for each in decoded]
        return texts

    @torch.inference_mode()
    def first_token(self, samples: Tensor) -> int:
        """The first token of a recording of at most 27 s: what a listener waits for first."""
        frames = window_frames(window_s(len(samples)))
        states_BXD, bias_BX = self._encode([samples], [frames])
        cache = self._decoder.start(states_BXD, len(self._prefix), bias_BX)
        hidden_BTD = self._decoder.step(torch.tensor([list(self._prefix)]), cache)
        rules = TokenRules(self._base, self._decoder.vocabulary.size)
        logits_BV = self._decoder.vocabulary.logits(hidden_BTD[:, -1], rules.first_bias_V)
        return int(logits_BV.argmax())

    @torch.inference_mode()
    def _hear(self, clips: Sequence[Tensor], wish: _Wish) -> list[_Heard]:
        """Each clip in its short window; those whose text is doubtful once more in a long one."""
        heard = [_Heard()] * len(clips)
        spoken = [index for index, clip in enumerate(clips) if may_be_speech(clip)]
        windows = [window_s(len(clips[index])) for index in spoken]
        doubtful = self._hear_in(clips, spoken, windows, heard, wish)
        if doubtful:
            longest = [MAX_WINDOW_S] * len(doubtful)
            self._hear_in(clips, doubtful, longest, heard, wish)
        return heard

    def _hear_in(
        self,
        clips: Sequence[Tensor],
        members: Sequence[int],
        windows_s: Sequence[float],
        heard: list[_Heard],
        wish: _Wish,
    ) -> list[int]:
        """Fill in what is heard of the members; returns those whose text is doubtful."""
        frames = {index: window_frames(w) for index, w in zip(members, windows_s, strict=True)}
        order = sorted(members, key=frames.__getitem__)
        doubtful: list[int] = []
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            states_BXD, bias_BX = self._encode(
                [clips[i] for i in batch], [frames[i] for i in batch]
            )
            lengths = [frames[index] // FRAMES_PER_STATE for index in batch]
            decoded = self._decode(states_BXD, lengths, bias_BX, wish.terms)
            for index, states_SD, length, each in zip(
                batch, states_BXD, lengths, decoded, strict=True
            ):
                text = self._text(each)
                if each.is_doubtful(text):
                    doubtful.append(index)
                timed = wish.words and text
                heard[index] = _Heard(
                    text,
                    self._align(states_SD[:length], each, clips[index]) if timed else (),
                )
        return doubtful

    def _decode(
        self,
        states_BXD: Tensor,
        lengths: Sequence[int],
        bias_BX: Tensor,
        terms: TermBias | None = None,
    ) -> list[Decoded]:
        decoder, base, prefix, beams = self._decoder, self._base, self._prefix, self._beams
        if beams == 1:
            return greedy(decoder, base, states_BXD, prefix, lengths, bias_CS=bias_BX, terms=terms)
        return [
            beam_search(
                decoder, base, states_XD, prefix, beams, length=n, bias_S=bias_X, terms=terms
            )
            for states_XD, n, bias_X in zip(states_BXD, lengths, bias_BX, strict=True)
        ]

    def _encode(self, clips: Sequence[Tensor], frames: Sequence[int]) -> tuple[Tensor, Tensor]:
        mel_BMT = log_mel(clips, max(frames) / FRAMES_PER_S, self._mel_bins)
        return self._encoder(mel_BMT, frames)

    def _align(self, states_SD: Tensor, decoded: Decoded, clip: Tensor) -> tuple[Word, ...]:
        prefix, duration_s = self._prefix, len(clip) / RATE_HZ
        return align(self._decoder, self._base, states_SD, prefix, decoded, duration_s=duration_s)

    def _text(self, decoded: Decoded) -> str:
        return "" if decoded.is_silence else self._base.tokenizer.decode(decoded.ids)


def clip_window_s(samples: int) -> float:
    """The window of an encoder that only cuts (`cut_window_s`), rounded up to the window step.

    For engines without the remembered silence: the exported one, and a teacher's cached states.
    """
    steps = math.ceil(cut_window_s(samples) / WINDOW_STEP_S)
    return min(steps * WINDOW_STEP_S, MAX_WINDOW_S)


def _transcript(
    samples: Tensor, spans: Sequence[tuple[int, int]], heard: Sequence[_Heard]
) -> Transcript:
    segments = tuple(
        Segment(
            start / RATE_HZ,
            end / RATE_HZ,
            each.text,
            tuple(_later(word, start / RATE_HZ) for word in each.words),
        )
        for (start, end), each in zip(spans, heard, strict=True)
        if each.text
    )
    return Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration_s=len(samples) / RATE_HZ,
    )


def _later(word: Word, by_s: float) -> Word:
    return dataclasses.replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s)
