"""Does a confidence of 0.9 mean nine right out of ten? Reliability of per-word confidences.

Expected calibration error (Naeini et al. 2015, Guo et al. 2017): words are sorted into bins of
equal width by their confidence, and ECE is Σ_bins share · |accuracy − mean confidence|. 0 is
perfect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import jiwer

from model_core.evaluate import normalise

BINS = 10


@dataclass(frozen=True)
class ReliabilityBin:
    """Words with a confidence in [low, high); the last bin takes 1 too.

    `confidence` is their mean confidence, `accuracy` the share that is right; both are 0 in an
    empty bin.
    """

    low: float
    high: float
    words: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """Expected calibration error over all words, and the bins that it comes from."""

    words: int
    ece: float
    bins: tuple[ReliabilityBin, ...]


def calibration(scored: Iterable[tuple[float, bool]], bins: int = BINS) -> Calibration | None:
    """Calibration of (confidence, whether the word was right) pairs; None for no pairs.

    Raises ValueError for a confidence outside [0, 1].
    """
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, right in scored:
        if not 0 <= confidence <= 1:
            raise ValueError(f"a confidence of {confidence} is no probability")
        members[min(int(confidence * bins), bins - 1)].append((confidence, right))
    words = sum(map(len, members))
    if words == 0:
        return None
    made = tuple(_bin(index, bins, each) for index, each in enumerate(members))
    ece = sum(each.words * abs(each.accuracy - each.confidence) for each in made) / words
    return Calibration(words, ece, made)


def score_words(reference: str, heard: Sequence[tuple[str, float]]) -> list[tuple[float, bool]]:
    """(confidence, right) of each heard (word, confidence): right where it aligns with its equal.

    Words are normalised as for the word error rate; one that becomes several passes its confidence
    on to each, one that becomes none is left out.
    """
    pieces = [(piece, p) for word, p in heard for piece in normalise(word).split()]
    wanted = normalise(reference)
    if not pieces or not wanted:
        return [(confidence, False) for _, confidence in pieces]
    output = jiwer.process_words(wanted, " ".join(word for word, _ in pieces))
    right = {
        index
        for chunk in output.alignments[0]
        if chunk.type == "equal"
        for index in range(chunk.hyp_start_idx, chunk.hyp_end_idx)
    }
    return [(confidence, index in right) for index, (_, confidence) in enumerate(pieces)]


def _bin(index: int, bins: int, members: Sequence[tuple[float, bool]]) -> ReliabilityBin:
    count = len(members)
    return ReliabilityBin(
        low=index / bins,
        high=(index + 1) / bins,
        words=count,
        confidence=sum(confidence for confidence, _ in members) / count if count else 0.0,
        accuracy=sum(right for _, right in members) / count if count else 0.0,
    )
