"""The recognisers that `benchmarks.model` compares, each behind the same two calls."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import GenerationConfig, WhisperFeatureExtractor

from model_core.audio import RATE_HZ
from model_core.base import SpeechBase, make_base
from model_core.cached_decoder import Precision
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint

BATCHED = "auricle int8, batched"
_MAX_TOKENS = 200


class System(Protocol):
    """A recogniser of 16 kHz mono clips, loaded."""

    def hear(self, clip: Tensor) -> str:
        """Text of a clip."""

    def first_token(self, clip: Tensor) -> object:
        """Do all that comes before the first token is known."""

    def hear_many(self, clips: Sequence[Tensor]) -> list[str]:
        """Texts of many clips."""


class Auricle:
    """Ours, with the mixture of experts."""

    def __init__(self, base: SpeechBase, precision: Precision) -> None:
        self._base = base
        self._transcriber = Transcriber(base, precision=precision)

    def hear(self, clip: Tensor) -> str:
        return self._transcriber.transcribe(clip).text

    def hear_many(self, clips: Sequence[Tensor]) -> list[str]:
        return [each.text for each in self._transcriber.transcribe_many(clips)]

    def first_token(self, clip: Tensor) -> object:
        return self._transcriber.first_token(clip)


class FasterWhisper:
    """The peer: CTranslate2 with int8 weights; it pads every clip to 30 s."""

    def __init__(self, threads: int, **options: Any) -> None:
        from faster_whisper import WhisperModel

        folder = str(resolve_checkpoint(None).folder)
        self._model = WhisperModel(folder, "cpu", compute_type="int8", cpu_threads=threads)
        self._options = options

    def hear(self, clip: Tensor) -> str:
        segments, _ = self._model.transcribe(clip.numpy(), language="en", **self._options)
        return " ".join(segment.text.strip() for segment in segments)

    def hear_many(self, clips: Sequence[Tensor]) -> list[str]:
        return [self.hear(clip) for clip in clips]

    def first_token(self, clip: Tensor) -> object:
        options = {**self._options, "max_new_tokens": 1, "temperature": 0.0}
        segments, _ = self._model.transcribe(clip.numpy(), language="en", **options)
        return list(segments)


class Transformers:
    """Stock generate: greedy, float32, padded to 30 s."""

    def __init__(self) -> None:
        whisper = load_whisper(resolve_checkpoint(None))
        self._model, self._tokenizer = whisper.model, whisper.tokenizer
        self._features = WhisperFeatureExtractor()
        self._model.generation_config = GenerationConfig(
            suppress_tokens=list(whisper.rules.suppress),
            begin_suppress_tokens=list(whisper.rules.begin_suppress),
            decoder_start_token_id=self._tokenizer.start,
            eos_token_id=self._tokenizer.end,
            pad_token_id=self._tokenizer.end,
            bos_token_id=self._tokenizer.end,
            no_timestamps_token_id=self._tokenizer.no_timestamps,
            is_multilingual=False,
            return_timestamps=False,
        )

    def hear(self, clip: Tensor) -> str:
        return self._tokenizer.decode(self._generate(clip, _MAX_TOKENS))

    def hear_many(self, clips: Sequence[Tensor]) -> list[str]:
        return [self.hear(clip) for clip in clips]

    def first_token(self, clip: Tensor) -> object:
        return self._generate(clip, 1)

    @torch.inference_mode()
    def _generate(self, clip: Tensor, tokens: int) -> list[int]:
        made = self._features(clip.numpy(), sampling_rate=RATE_HZ, return_tensors="pt")
        ids_BT = self._model.generate(made.input_features, max_length=tokens + 2)
        return [int(token) for token in ids_BT[0]]


@functools.cache
def _base() -> SpeechBase:
    return make_base(load_whisper(resolve_checkpoint(None)), MixtureConfig())


SYSTEMS: dict[str, Callable[[int], System]] = {
    "faster-whisper int8": FasterWhisper,
    "auricle int8": lambda _: Auricle(_base(), "int8"),
    "auricle float32": lambda _: Auricle(_base(), "float32"),
    "faster-whisper int8, one beam": functools.partial(FasterWhisper, beam_size=1),
    "transformers float32": lambda _: Transformers(),
}
