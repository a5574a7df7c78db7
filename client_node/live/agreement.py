"""Stable text from a growing window: LocalAgreement-2 (Macháček et al. 2023, section 2.1).

The window is decoded again and again while someone speaks. Words that two decodings in a row agree
on, from the start, are stable: they are never taken back before the final text, which is decoded
from the whole utterance and stands alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    r"\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Japanese, Chinese
)
_PIECE = re.compile(rf"\s*(?:[{_UNSPACED}]|[^\s{_UNSPACED}]+)")


def split_text(text: str) -> list[str]:
    """Words with the space before them, or characters where a script writes no spaces.

    Joined they are the text, but for space at its end.
    """
    return _PIECE.findall(text)


class LocalAgreement:
    """The stable words of one utterance so far."""

    def __init__(self) -> None:
        """Nothing is stable yet."""
        self._stable: list[str] = []
        self._previous: Sequence[str] = ()

    @property
    def stable(self) -> tuple[str, ...]:
        """Words that will not change before the final text."""
        return tuple(self._stable)

    def update(self, words: Sequence[str]) -> tuple[str, ...]:
        """Take the next decoding; returns the words after the stable ones, which may change.

        The last word of a decoding is often half said, so it never becomes stable.
        """
        agreed = 0
        for before, now in zip(self._previous, words[:-1], strict=False):
            if plain(before) != plain(now):
                break
            agreed += 1
        if agreed > len(self._stable):
            self._stable += words[len(self._stable) : agreed]
        self._previous = tuple(words)
        return tuple(words[len(self._stable) :])


def plain(word: str) -> str:
    """A word without case and punctuation, which change as the sentence grows."""
    kept = (c for c in word.casefold() if not unicodedata.category(c).startswith("P"))
    return "".join(kept).strip()
