"""What a live stream tells its listener, and what it asks of the model.

Shape suffix: N samples.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from model_core.words import Word


@dataclasses.dataclass(frozen=True)
class SpeechStarted:
    """Someone began to speak, `at_s` seconds into the stream. A `Final` will close it."""

    utterance: int
    at_s: float


@dataclasses.dataclass(frozen=True)
class Partial:
    """Text of an utterance that is still being spoken.

    Attributes:
        utterance: number of the utterance in its stream, from 0.
        stable: words that will not change before the final text.
        tentative: words after them that may.
    """

    utterance: int
    stable: str
    tentative: str


@dataclasses.dataclass(frozen=True)
class Final:
    """An utterance's text, made from all of it. `text` is "" where no words were in the sound.

    Attributes:
        utterance: number of the utterance in its stream, from 0.
        start_s, end_s: where it lies in the stream.
        text: what was said.
        words: its words; times count from the start of the stream.
        release: the release that heard it; None for the base model.
    """

    utterance: int
    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...]
    release: str | None


Event = SpeechStarted | Partial | Final


@dataclasses.dataclass(frozen=True)
class Heard:
    """One decoding of a window: its text, its words if it was a final one, and who heard it."""

    text: str
    words: tuple[Word, ...] = ()
    release: str | None = None


class Ear(Protocol):
    """Turns windows of one stream into text; called from worker threads, one call at a time."""

    def draft(self, samples_N: np.ndarray) -> Heard | None:
        """Text of speech that is still going on, in one quick look; None where it is doubtful."""

    def final(self, samples_N: np.ndarray) -> Heard:
        """Text and words of a whole utterance, as carefully as a file is transcribed."""


class Ears(Protocol):
    """Makes the ear of each stream."""

    def listen(self, terms: Sequence[str]) -> Ear:
        """An ear that expects `terms`. Raises LiveError (stream-terms) for unusable ones."""
