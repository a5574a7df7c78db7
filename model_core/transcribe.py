"""Speech to text: short windows in batch, long recordings cut at their quietest moments.

Each clip is encoded in a window of its own length plus 1 s (`features.window_s`), and the silence
up to Whisper's 30 s is remembered (`silent_tail`). A text that a guard doubts
(`Decoded.is_doubtful`) is made once more in a window of 30 s, and that one stands. Clips of like
length share a batch; padding is masked, so a transcript does not depend on its batch.
"""

from __future__ import annotations

import copy
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
from model_core.sound import MAX_PIECE_S, cut_at_pauses, may_be_speech
from model_core.term_bias import TermBias
from model_core.tokens import SpeechTokenizer, Task
from model_core.words import Word, align

WINDOW_STEP_S = 0.5
_BATCH = 16


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording with its text; words if asked for.

    Attributes:
        start_s, end_s: seconds from the start of the recording.
        mean_log_probability: per token.
        no_speech_probability: of the window it was heard in.
        ids: the text's tokens.
    """

    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    mean_log_probability: float = 0.0
    no_speech_probability: float = 0.0
    ids: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Heard:
    """What was heard in one clip; words' times count from its own start."""

    text: str = ""
    words: tuple[Word, ...] = ()
    decoded: Decoded | None = None


@dataclass(frozen=True)
class DecodingOptions:
    """What one caller asks of the decoder.

    Attributes:
        prompt_terms: words to expect, after those that the transcriber always expects.
        language: of the speech, by Whisper's code.
        task: "translate" writes English, where the model is multilingual.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        boosted_terms: words to expect, made likelier while they are spelled (`term_bias`); for a
            transcriber of one beam.
    """

    prompt_terms: tuple[str, ...] = ()
    language: str = "en"
    task: Task = "transcribe"
    temperature: float = 0.0
    boosted_terms: tuple[str, ...] = ()


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
        self._terms = tuple(prompt_terms)
        self._use(DecodingOptions(language=language))

    @property
    def tokenizer(self) -> SpeechTokenizer:
        """The model's tokens: what languages it knows."""
        return self._base.tokenizer

    def asked(self, options: DecodingOptions) -> Transcriber:
        """The same model, decoding as `options` say. Costs nothing: weights are shared.

        Raises TextError: `text-language`, `text-empty` for an empty term; ValueError for boosted
        terms with several beams.
        """
        other = copy.copy(self)
        other._use(options)
        return other

    def _use(self, options: DecodingOptions) -> None:
        tokenizer = self._base.tokenizer
        self._temperature = options.temperature
        terms = options.boosted_terms
        if terms and self._beams > 1:
            raise ValueError("terms are boosted in greedy decoding only")
        self._boost = TermBias(tokenizer, terms) if terms else None
        self._prefix = (
            *tokenizer.prompt((*self._terms, *options.prompt_terms)),
            *tokenizer.prefix(options.language, options.task),
        )

    @torch.inference_mode()
    def detect_language(self, samples: Tensor) -> str:
        """Whisper's code of the language spoken in the first 27 s; "en" for an English model."""
        tokenizer = self._base.tokenizer
        languages = tokenizer.languages
        if not tokenizer.multilingual or not may_be_speech(samples):
            return "en"
        clip = samples[: int(MAX_PIECE_S * RATE_HZ)]
        states_1XD, bias_1X = self._encode([clip], [window_frames(window_s(len(clip)))])
        cache = self._decoder.start(states_1XD, 1, bias_1X)
        hidden_1TD = self._decoder.step(torch.tensor([[tokenizer.start]]), cache)
        logits_V = self._decoder.vocabulary.logits(hidden_1TD[:, -1])[0]
        return max(languages, key=lambda code: float(logits_V[languages[code]]))

    def transcribe(self, samples: Tensor, *, words: bool = False) -> Transcript:
        """Transcribe one recording: [N] float32 at 16 kHz, any length; `words` asks for times."""
        return self.transcribe_many([samples], words=words)[0]

    @torch.inference_mode()
    def draft(self, samples: Tensor) -> str | None:
        """Text of at most 29 s in one look, for speech still going on; None where it is doubtful.

        What `transcribe` would look at again in a longer window is not worth showing yet.
        """
        heard = [_Heard()]
        window = window_s(len(samples))
        if may_be_speech(samples) and self._hear_in([samples], [0], [window], heard, False):
            return None
        return heard[0].text

    def transcribe_many(
        self, recordings: Sequence[Tensor], *, words: bool = False
    ) -> list[Transcript]:
        """Transcribe recordings in batches; the result does not depend on the batching."""
        pieces = [cut_at_pauses(samples) for samples in recordings]
        clips = [
            samples[start:end]
            for samples, spans in zip(recordings, pieces, strict=True)
            for start, end in spans
        ]
        heard = iter(self._hear(clips, words))
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
    def _hear(self, clips: Sequence[Tensor], words: bool) -> list[_Heard]:
        """Each clip in its short window; those whose text is doubtful once more in a long one."""
        heard = [_Heard()] * len(clips)
        spoken = [index for index, clip in enumerate(clips) if may_be_speech(clip)]
        windows = [window_s(len(clips[index])) for index in spoken]
        doubtful = self._hear_in(clips, spoken, windows, heard, words)
        if doubtful:
            self._hear_in(clips, doubtful, [MAX_WINDOW_S] * len(doubtful), heard, words)
        return heard

    def _hear_in(
        self,
        clips: Sequence[Tensor],
        members: Sequence[int],
        windows_s: Sequence[float],
        heard: list[_Heard],
        words: bool,
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
            # What can be said is the clip's own length, in whatever window it is heard.
            said = [window_frames(window_s(len(clips[i]))) // FRAMES_PER_STATE for i in batch]
            decoded = self._decode(states_BXD, said, bias_BX)
            for index, states_SD, length, each in zip(
                batch, states_BXD, lengths, decoded, strict=True
            ):
                text = self._text(each)
                if each.is_doubtful(text):
                    doubtful.append(index)
                timed = words and text
                heard[index] = _Heard(
                    text,
                    self._align(states_SD[:length], each, clips[index]) if timed else (),
                    each,
                )
        return doubtful

    def _decode(self, states_BXD: Tensor, lengths: Sequence[int], bias_BX: Tensor) -> list[Decoded]:
        decoder, base, prefix = self._decoder, self._base, self._prefix
        if self._beams == 1:
            return greedy(
                decoder,
                base,
                states_BXD,
                prefix,
                lengths,
                bias_CS=bias_BX,
                temperature=self._temperature,
                boost=self._boost,
            )
        return [
            beam_search(
                decoder,
                base,
                states_XD,
                prefix,
                self._beams,
                length=n,
                bias_S=bias_X,
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
            tuple(later(word, start / RATE_HZ) for word in each.words),
            *_scores(each.decoded),
        )
        for (start, end), each in zip(spans, heard, strict=True)
        if each.text
    )
    return Transcript(
        text=" ".join(segment.text for segment in segments),
        segments=segments,
        duration_s=len(samples) / RATE_HZ,
    )


def _scores(decoded: Decoded | None) -> tuple[float, float, tuple[int, ...]]:
    if decoded is None:
        return 0.0, 0.0, ()
    return decoded.mean_log_probability, decoded.no_speech_probability, decoded.ids


def later(word: Word, by_s: float) -> Word:
    """The word, said `by_s` seconds later."""
    return dataclasses.replace(word, start_s=word.start_s + by_s, end_s=word.end_s + by_s)
