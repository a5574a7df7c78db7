"""How well a transcript matches: word and character error rate and term accuracy.

Normalisation: Unicode NFKC, lower case, hyphens and dashes to spaces, everything but letters,
marks, digits and apostrophes to spaces, apostrophes at a word's ends dropped. Numbers are not
rewritten ("5" and "five" differ), nor accents ("numero" and "número" differ).
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import jiwer

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'"})


@dataclass(frozen=True)
class TermScore:
    """Occurrences of terms in references, and how many of them were transcribed."""

    right: int
    total: int

    @property
    def accuracy(self) -> float:
        """right ÷ total, 0 where no reference has a term."""
        return self.right / self.total if self.total else 0.0


def normalise(text: str) -> str:
    """Words of a text, separated by single spaces. Idempotent."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    kept = (
        character if unicodedata.category(character)[0] in "LMN" or character == "'" else " "
        for character in folded.translate(_APOSTROPHES)
    )
    words = (word.strip("'") for word in "".join(kept).split())
    return " ".join(word for word in words if word)


def word_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """(substitutions + deletions + insertions) ÷ reference words, over all pairs, normalised.

    Raises ValueError for sequences of unequal length or references without any word.
    """
    return _error_rate(_normalised(references, hypotheses))


def character_error_rate(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """The same for characters, the spaces between words left out.

    For languages that write no spaces, and where one wrong ending should not cost a whole word.
    Raises ValueError like `word_error_rate`.
    """
    pairs = _normalised(references, hypotheses)
    return _error_rate([(_spelt(reference), _spelt(heard)) for reference, heard in pairs])


def _normalised(references: Sequence[str], hypotheses: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (normalise(reference), normalise(hypothesis))
        for reference, hypothesis in zip(references, hypotheses, strict=True)
    ]


def _spelt(text: str) -> str:
    """Each character as a word of its own."""
    return " ".join(text.replace(" ", ""))


def _error_rate(pairs: Sequence[tuple[str, str]]) -> float:
    total = sum(len(reference.split()) for reference, _ in pairs)
    if total == 0:
        raise ValueError("the references have no words")
    spoken = [pair for pair in pairs if pair[0]]
    # jiwer takes no empty reference: what was heard in silence is all insertions.
    inserted = sum(len(hypothesis.split()) for reference, hypothesis in pairs if not reference)
    output = jiwer.process_words([r for r, _ in spoken], [h for _, h in spoken])
    errors = output.substitutions + output.deletions + output.insertions + inserted
    return float(errors) / total


def term_accuracy(
    references: Sequence[str], hypotheses: Sequence[str], terms: Sequence[str]
) -> TermScore:
    """Count each occurrence of each term in a reference, and those that its hypothesis has too.

    Terms may have several words. Where terms overlap the longest counts, so a reference with
    "subordinated debenture" is not also an occurrence of "debenture".
    """
    known = sorted({tuple(normalise(term).split()) for term in terms} - {()}, key=len, reverse=True)
    right = total = 0
    for reference, hypothesis in zip(references, hypotheses, strict=True):
        wanted, heard = _count(reference, known), _count(hypothesis, known)
        total += wanted.total()
        right += (wanted & heard).total()
    return TermScore(right, total)


def _count(text: str, terms: Sequence[tuple[str, ...]]) -> Counter[tuple[str, ...]]:
    words = tuple(normalise(text).split())
    found: Counter[tuple[str, ...]] = Counter()
    position = 0
    while position < len(words):
        hit = next((t for t in terms if words[position : position + len(t)] == t), None)
        if hit is None:
            position += 1
        else:
            found[hit] += 1
            position += len(hit)
    return found
