"""The ears of a site's live streams: whatever release serves, asked anew for every window."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from client_node.live.errors import LiveError
from client_node.live.events import Heard
from model_core.errors import TextError
from model_core.term_bias import TermBias
from model_core.transcribe import Transcriber

Serving = Callable[[], tuple[str | None, Transcriber]]
"""What serves now: the release's name (None for the base) and its transcriber."""


class SiteEars:
    """Ears that hear with the release that serves at that moment."""

    def __init__(self, serving: Serving) -> None:
        """`serving` is `SiteTranscriber.current`."""
        self._serving = serving

    def listen(self, terms: Sequence[str]) -> SiteEar:
        """An ear that expects `terms`. Raises LiveError (stream-terms) for an empty term."""
        _, transcriber = self._serving()
        try:
            return SiteEar(self._serving, transcriber.term_bias(terms))
        except TextError as error:
            raise LiveError(
                "a term is empty",
                remedy="give terms of at least one character, or none",
                code="stream-terms",
            ) from error


class SiteEar:
    """One stream's ear. A swap of release takes effect at the next window."""

    def __init__(self, serving: Serving, terms: TermBias | None) -> None:
        """`terms` are of the base's tokenizer, which all its releases share."""
        self._serving, self._terms = serving, terms

    def draft(self, samples_N: np.ndarray) -> Heard | None:
        """One quick look at a window [N] float32 at 16 kHz; None where the text is doubtful."""
        release, transcriber = self._serving()
        text = transcriber.draft(torch.from_numpy(samples_N), terms=self._terms)
        return None if text is None else Heard(text, release=release)

    def final(self, samples_N: np.ndarray) -> Heard:
        """A whole utterance [N], transcribed as a file would be."""
        release, transcriber = self._serving()
        samples = torch.from_numpy(samples_N)
        made = transcriber.transcribe(samples, words=True, terms=self._terms)
        words = tuple(word for segment in made.segments for word in segment.words)
        return Heard(made.text, words, release)
