"""Recordings of any length, window by window, in bounded memory.

Windows end where 0.2 s are quietest. Where that is a pause, the next begins there. Where nobody
pauses, a cut would go through a word, so the two windows share two seconds on either side of it,
and the texts are joined in the middle of the words that both have heard.
"""

from __future__ import annotations

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.sound import MAX_PIECE_S, quietest_pause
from model_core.tokens import SpeechTokenizer
from model_core.transcribe import Segment, Transcript, later
from model_core.words import Word

OVERLAP_S = 2.0  # on either side of a cut where nobody pauses
_MIN_WINDOW_S = 15.0
_PAUSE_RATIO = 0.1  # a pause is 20 dB quieter than what is around it
_SAME_WORD_S = 0.5  # two windows place one word no further apart
_AT_ONCE = 2

Hear = Callable[[Sequence[Tensor], bool], Sequence[Transcript]]
"""Transcribes clips of at most 27 s, with words' times if the flag says so."""


class Recording(Protocol):
    """16 kHz mono samples that need not be in memory."""

    @property
    def samples(self) -> int:
        """How many there are."""

    def read(self, start: int, stop: int) -> Tensor:
        """Samples [start, stop) as float32."""


@dataclass(frozen=True)
class Window:
    """Samples [start, stop) are heard; what is said in [own_start, own_stop) is this window's."""

    start: int
    stop: int
    own_start: int
    own_stop: int

    @property
    def overlaps(self) -> bool:
        """Whether it shares sound with a neighbour."""
        return (self.start, self.stop) != (self.own_start, self.own_stop)


def windows(recording: Recording) -> Iterator[Window]:
    """Windows of at most 27 s whose own parts cover the recording, in order."""
    own_start, lead = 0, 0
    overlap = int(OVERLAP_S * RATE_HZ)
    shortest = int(_MIN_WINDOW_S * RATE_HZ)
    while True:
        longest = int(MAX_PIECE_S * RATE_HZ) - lead
        if recording.samples - own_start <= longest:
            yield Window(own_start - lead, recording.samples, own_start, recording.samples)
            return
        ahead = recording.read(own_start, own_start + longest)
        loudness = float(ahead.square().mean().sqrt())
        cut, level = quietest_pause(ahead, shortest)
        tail = 0
        if level > _PAUSE_RATIO * loudness:
            tail = overlap
            cut, _ = quietest_pause(ahead[: longest - tail], shortest)
        own_stop = own_start + cut
        yield Window(own_start - lead, own_stop + tail, own_start, own_stop)
        own_start, lead = own_stop, tail


def transcribe_long(
    recording: Recording, hear: Hear, tokenizer: SpeechTokenizer, *, words: bool
) -> Iterator[Segment]:
    """Segments of a recording in order, one a window, each as soon as it is final.

    Two windows are heard at once. `words` asks for words' times.
    """
    planned = windows(recording)
    held: tuple[Window, Segment] | None = None
    while batch := list(itertools.islice(planned, _AT_ONCE)):
        clips = [recording.read(window.start, window.stop) for window in batch]
        heard = hear(clips, words or any(window.overlaps for window in batch))
        for window, transcript in zip(batch, heard, strict=True):
            segment = _placed(window, transcript)
            if held is not None:
                before, segment = _joined(*held, window, segment, tokenizer)
                if before.text:
                    yield before
            held = window, segment
    if held is not None and held[1].text:
        yield held[1]


def _placed(window: Window, transcript: Transcript) -> Segment:
    """What was heard in a window, in the recording's time."""
    by_s = window.start / RATE_HZ
    span_s = window.own_start / RATE_HZ, window.own_stop / RATE_HZ
    if not transcript.segments:
        return Segment(*span_s, "")
    (segment,) = transcript.segments
    words = tuple(later(word, by_s) for word in segment.words)
    return dataclasses.replace(segment, start_s=span_s[0], end_s=span_s[1], words=words)


def _joined(
    window: Window,
    segment: Segment,
    next_window: Window,
    next_segment: Segment,
    tokenizer: SpeechTokenizer,
) -> tuple[Segment, Segment]:
    """Both segments, each without what the other tells of their shared sound."""
    if window.stop <= next_window.start:
        return segment, next_segment
    kept, dropped = _seam(
        segment.words,
        next_segment.words,
        (next_window.start / RATE_HZ, window.stop / RATE_HZ),
        window.own_stop / RATE_HZ,
    )
    return (
        _with_words(segment, segment.words[:kept], tokenizer),
        _with_words(next_segment, next_segment.words[dropped:], tokenizer),
    )


def _seam(
    before: Sequence[Word], after: Sequence[Word], shared_s: tuple[float, float], cut_s: float
) -> tuple[int, int]:
    """How many words of `before` stay, and how many of `after` go.

    In the middle of the longest run of words that both heard at the same time; where there is
    none, at the cut.
    """
    first = sum(word.end_s <= shared_s[0] for word in before)
    last = sum(word.start_s < shared_s[1] for word in after)
    run = difflib.SequenceMatcher(
        None, [_bare(word) for word in before], [_bare(word) for word in after], autojunk=False
    ).find_longest_match(first, len(before), 0, last)
    pairs = range(run.size)
    if run.size and all(
        abs(_middle(before[run.a + i]) - _middle(after[run.b + i])) <= _SAME_WORD_S for i in pairs
    ):
        half = (run.size + 1) // 2
        return run.a + half, run.b + half
    return (
        sum(_middle(word) < cut_s for word in before),
        sum(_middle(word) < cut_s for word in after),
    )


def _with_words(segment: Segment, words: Sequence[Word], tokenizer: SpeechTokenizer) -> Segment:
    ids = tuple(token for word in words for token in word.ids)
    return dataclasses.replace(segment, words=tuple(words), ids=ids, text=tokenizer.decode(ids))


def _bare(word: Word) -> str:
    return "".join(character for character in word.text.casefold() if character.isalnum())


def _middle(word: Word) -> float:
    return (word.start_s + word.end_s) / 2
