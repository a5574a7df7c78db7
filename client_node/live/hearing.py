"""The ears of a site's live streams: whatever release serves, asked anew for every window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from client_node.live.errors import LiveError
from client_node.live.events import Heard
from model_core.errors import TextError
from model_core.transcribe import DecodingOptions, Transcriber

Serving = Callable[[], tuple[str | None, Transcriber]]
"""What serves now: the release's name (None for the base) and its transcriber."""


class SiteEars:
    """Ears that hear with the release that serves at that moment."""

    def __init__(self, serving: Serving) -> None:
        """`serving` is `SiteTranscriber.current`."""
        self._serving = serving

    def listen(self, terms: Sequence[str]) -> SiteEar:
        """An ear that expects `terms`. Raises LiveError (stream-terms) for an empty term."""
        try:
            # The prompt helps most and holds some fifty terms; boosting has no such limit.
            options = DecodingOptions(prompt_terms=tuple(terms), boosted_terms=tuple(terms))
            return SiteEar(self._serving, options)
        except TextError as error:
            raise LiveError(
                "a term is empty",
                remedy="give terms of at least one character, or none",
                code="stream-terms",
            ) from error


class SiteEar:
    """One stream's ear. A swap of release takes effect at the next window."""

    def __init__(self, serving: Serving, options: DecodingOptions) -> None:
        """Raises TextError for options that the model cannot follow."""
        self._serving, self._options = serving, options
        self._asked: tuple[Transcriber, Transcriber] | None = None
        self._current()

    def draft(self, samples_N: np.ndarray) -> Heard | None:
        """One quick look at a window [N] float32 at 16 kHz; None where the text is doubtful."""
        release, transcriber = self._current()
        text = transcriber.draft(torch.from_numpy(samples_N))
        return None if text is None else Heard(text, release=release)

    def final(self, samples_N: np.ndarray) -> Heard:
        """A whole utterance [N], transcribed as a file would be."""
        release, transcriber = self._current()
        made = transcriber.transcribe(torch.from_numpy(samples_N), words=True)
        words = tuple(word for segment in made.segments for word in segment.words)
        return Heard(made.text, words, release)

    def _current(self) -> tuple[str | None, Transcriber]:
        release, transcriber = self._serving()
        if self._asked is None or self._asked[0] is not transcriber:
            self._asked = transcriber, transcriber.asked(self._options)
        return release, self._asked[1]
