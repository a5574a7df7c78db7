"""From an uploaded file to timed text: confined decoding, windows, batches, the active release."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import BinaryIO, Protocol

from torch import Tensor

from client_node.batcher import Batcher
from client_node.decoding.decoder import DecodedRecording, RecordingDecoder
from model_core.audio import RATE_HZ
from model_core.cues import cues
from model_core.long_form import transcribe_long
from model_core.sound import MAX_PIECE_S
from model_core.tokens import Task
from model_core.transcribe import DecodingOptions, Segment, Transcriber, Transcript


@dataclasses.dataclass(frozen=True)
class Asked:
    """What a client asks of one recording.

    Attributes:
        vocabulary: words to expect.
        language: Whisper's code; None to hear which it is.
        task: "translate" writes English.
        temperature: 0 takes the likeliest words.
        words: whether words' times are wanted, and segments short enough to read.
        raw: telephony without a container, a key of `model_core.pcm.RAW_TELEPHONY`.
    """

    vocabulary: tuple[str, ...] = ()
    language: str | None = None
    task: Task = "transcribe"
    temperature: float = 0.0
    words: bool = False
    raw: str | None = None


@dataclasses.dataclass(frozen=True)
class Heard:
    """What is being heard: segments come one by one, while the recording is open.

    `release` is None for the base model; `language` is Whisper's code of what is spoken.
    """

    release: str | None
    language: str
    duration_s: float
    segments: Iterator[Segment]


class Serving(Protocol):
    """What the recogniser needs of `client_node.inference.SiteTranscriber`."""

    @property
    def release(self) -> str | None:
        """Release that serves; None for the base."""

    def current(self) -> tuple[str | None, Transcriber]:
        """Release and its transcriber, loaded and verified."""


class Recogniser:
    """Hears recordings with what the site serves. Threads may share it."""

    def __init__(self, serving: Serving, decoder: RecordingDecoder, batcher: Batcher) -> None:
        self._serving, self._decoder, self._batcher = serving, decoder, batcher

    @property
    def release(self) -> str | None:
        """Release that the next recording is heard with; None for the base."""
        return self._serving.release

    def languages(self) -> frozenset[str]:
        """Whisper's codes of the languages that serve; English alone for an English base."""
        tokenizer = self._serving.current()[1].tokenizer
        return frozenset(tokenizer.languages if tokenizer.multilingual else ("en",))

    def warm_up(self) -> None:
        """Load and verify what serves. Raises ReleaseError, SignatureError or WeightsError."""
        self._serving.current()

    @contextlib.contextmanager
    def listen(self, recording: BinaryIO, asked: Asked) -> Iterator[Heard]:
        """Decode a recording, an open file of the operating system, and begin to hear it.

        Raises AudioError for the file; ReleaseError, SignatureError or WeightsError where what
        should serve does not verify; TextError (text-language).
        """
        with self._decoder.decode(recording, raw=asked.raw) as decoded:
            release, transcriber = self._serving.current()
            language = asked.language or _spoken_language(transcriber, decoded)
            options = DecodingOptions(asked.vocabulary, language, asked.task, asked.temperature)
            model = transcriber.asked(options)

            def hear(clips: Sequence[Tensor], words: bool) -> Sequence[Transcript]:
                return self._batcher.hear(model, (release, options), clips, words=words)

            segments = transcribe_long(decoded, hear, transcriber.tokenizer, words=asked.words)
            if asked.words:
                segments = cues(segments, transcriber.tokenizer)
            yield Heard(release, language, decoded.duration_s, segments)

    def close(self) -> None:
        """End the decoder's process and the model's thread."""
        self._decoder.close()
        self._batcher.close()


def _spoken_language(transcriber: Transcriber, recording: DecodedRecording) -> str:
    if not transcriber.tokenizer.multilingual:
        return "en"
    return transcriber.detect_language(recording.read(0, int(MAX_PIECE_S * RATE_HZ)))
