"""Segments short enough to read: a window's words parted at sentences, pauses and full lines."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence

from model_core.tokens import SpeechTokenizer
from model_core.transcribe import Segment
from model_core.words import Word

MAX_CUE_S = 7.0
MAX_CUE_CHARACTERS = 84  # two lines of 42, as subtitles are set
_PAUSE_S = 1.0
_SENTENCE_ENDS = (".", "?", "!", "。", "？", "！", "…")


def cues(segments: Iterable[Segment], tokenizer: SpeechTokenizer) -> Iterator[Segment]:
    """Split segments that have words; those without pass unchanged.

    A cue ends after a sentence, before a pause of a second, and where it would last longer than
    7 s or be longer than two lines. Its log-probability is that of its own words.
    """
    for segment in segments:
        if not segment.words:
            yield segment
            continue
        for words in _parted(segment.words):
            ids = tuple(token for word in words for token in word.ids)
            yield dataclasses.replace(
                segment,
                start_s=words[0].start_s,
                end_s=words[-1].end_s,
                text=tokenizer.decode(ids),
                words=tuple(words),
                mean_log_probability=_mean_log_probability(words),
                ids=ids,
            )


def _parted(words: Sequence[Word]) -> Iterator[list[Word]]:
    cue: list[Word] = []
    for word in words:
        if cue and _ends_before(cue, word):
            yield cue
            cue = []
        cue.append(word)
    yield cue


def _ends_before(cue: Sequence[Word], word: Word) -> bool:
    characters = sum(len(each.text) + 1 for each in cue) + len(word.text)
    return (
        cue[-1].text.endswith(_SENTENCE_ENDS)
        or word.start_s - cue[-1].end_s > _PAUSE_S
        or word.end_s - cue[0].start_s > MAX_CUE_S
        or characters > MAX_CUE_CHARACTERS
    )


def _mean_log_probability(words: Sequence[Word]) -> float:
    """Per token; a word's confidence is the geometric mean of its tokens' probabilities."""
    tokens = sum(len(word.ids) for word in words)
    least = math.ulp(0.0)
    total = sum(math.log(max(word.confidence, least)) * len(word.ids) for word in words)
    return total / tokens if tokens else 0.0
