"""Long recordings: every word once, where it was said, whatever the windows cut through."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.long_form import OVERLAP_S, transcribe_long, windows
from model_core.nano import nano_tokenizer
from model_core.sound import MAX_PIECE_S
from model_core.transcribe import Segment, Transcript
from model_core.words import Word

TOKENIZER = nano_tokenizer()
CLOCK = 1 << 20


@dataclass(frozen=True)
class Spoken:
    """A recording whose samples tell their own place, so that a fake listener knows where it is.

    Speech is at full level; `pauses` are seconds around which 0.5 s are silent.
    """

    seconds: float
    pauses: tuple[float, ...] = ()

    @property
    def samples(self) -> int:
        return int(self.seconds * RATE_HZ)

    def read(self, start: int, stop: int) -> Tensor:
        places = torch.arange(start, min(stop, self.samples), dtype=torch.float32)
        level = torch.full_like(places, 0.5)
        for pause in self.pauses:
            level[(places / RATE_HZ - pause).abs() < 0.25] = 1e-4
        # The first sample is the place of all: `where` reads it back.
        level[0] = start / CLOCK
        return level


def where(clip: Tensor) -> float:
    return float(clip[0]) * CLOCK / RATE_HZ


@dataclass(frozen=True)
class Listener:
    """Hears the words that lie wholly in a clip, and half words at its edges as something else."""

    script: tuple[tuple[float, float, str], ...]
    jitter_s: float = 0.0

    def __call__(self, clips: object, words: bool) -> list[Transcript]:
        return [self.hear(clip, words) for clip in clips]  # type: ignore[attr-defined]

    def hear(self, clip: Tensor, words: bool) -> Transcript:
        start, end = where(clip), where(clip) + len(clip) / RATE_HZ
        said = []
        for number, (word_start, word_end, text) in enumerate(self.script):
            if word_end <= start or word_start >= end:
                continue
            whole = start <= word_start and word_end <= end
            shift = self.jitter_s * (-1) ** (number + int(start))
            at = max(word_start, start) - start + shift, min(word_end, end) - start + shift
            ids = tuple(TOKENIZER.encode(text if whole else "uh"))
            said.append(Word(*at, text if whole else "uh", 0.9, ids))
        text = " ".join(word.text for word in said)
        if not said:
            return Transcript("", (), end - start)
        ids = tuple(token for word in said for token in word.ids)
        segment = Segment(0.0, end - start, text, tuple(said) if words else (), -0.1, 0.0, ids)
        return Transcript(text, (segment,), end - start)


def counting(seconds: float, word_s: float) -> tuple[tuple[float, float, str], ...]:
    count = int(seconds / word_s)
    return tuple((i * word_s, (i + 1) * word_s, f"word{i}") for i in range(count))


@settings(max_examples=25, deadline=None)
@given(
    seconds=st.floats(1.0, 100.0),
    word_s=st.floats(0.15, 1.2),
    jitter_s=st.floats(0.0, 0.1),
    pauses=st.lists(st.floats(0.0, 100.0), max_size=6),
)
def test_every_word_once_and_in_order(seconds, word_s, jitter_s, pauses):
    script = [w for w in counting(seconds, word_s) if not any(abs(w[0] - p) < 2 for p in pauses)]
    recording = Spoken(seconds, tuple(pauses))
    segments = transcribe_long(recording, Listener(tuple(script), jitter_s), TOKENIZER, words=True)
    heard = [word for segment in segments for word in segment.words]
    assert [word.text for word in heard] == [text for _, _, text in script]
    for word, (start_s, _, _) in zip(heard, script, strict=True):
        assert word.start_s == pytest.approx(start_s, abs=jitter_s + 1e-3)


@given(seconds=st.floats(0.1, 120.0), pauses=st.lists(st.floats(0.0, 120.0), max_size=6))
@settings(max_examples=20, deadline=None)
def test_windows_cover_the_recording_and_are_never_too_long(seconds, pauses):
    recording = Spoken(seconds, tuple(pauses))
    planned = list(windows(recording))
    assert planned[0].start == planned[0].own_start == 0
    assert planned[-1].stop == planned[-1].own_stop == recording.samples
    for window in planned:
        assert window.start <= window.own_start < window.own_stop <= window.stop
        assert window.stop - window.start <= MAX_PIECE_S * RATE_HZ
    for before, after in itertools.pairwise(planned):
        assert before.own_stop == after.own_start
        shared_s = (before.stop - after.start) / RATE_HZ
        assert shared_s in (0.0, 2 * OVERLAP_S)


def test_a_pause_is_cut_without_overlap_and_constant_speech_with_it():
    assert not any(window.overlaps for window in windows(Spoken(50.0, (20.0, 40.0))))
    assert all(window.overlaps for window in windows(Spoken(50.0)))


def test_texts_of_different_hearing_are_cut_once_at_the_seam():
    """No word in common: what A said before the cut, what B said after it."""
    plan = list(windows(Spoken(40.0)))
    cut_s = plan[0].own_stop / RATE_HZ

    def hear(clips, words):
        return [
            Listener(tuple((a, b, f"{text}{'ab'[where(clip) > 0]}") for a, b, text in script)).hear(
                clip, words
            )
            for clip in clips
        ]

    script = counting(40.0, 0.5)
    heard = [
        word
        for segment in transcribe_long(Spoken(40.0), hear, TOKENIZER, words=True)
        for word in segment.words
    ]
    assert [word.text[:-1] for word in heard] == [text for _, _, text in script]
    assert all((word.text[-1] == "b") == (word.start_s + 0.25 >= cut_s) for word in heard)


def test_words_are_asked_for_only_where_windows_overlap_or_the_caller_wants_them():
    asked = []

    def hear(clips, words):
        asked.append(words)
        return [Transcript("", (), 1.0) for _ in clips]

    for recording, words in ((Spoken(5.0), False), (Spoken(5.0), True), (Spoken(40.0), False)):
        assert list(transcribe_long(recording, hear, TOKENIZER, words=words)) == []
    assert asked == [False, True, True]


def test_text_without_words_keeps_its_text():
    segments = list(
        transcribe_long(Spoken(3.0), Listener(counting(3.0, 0.5)), TOKENIZER, words=False)
    )
    assert [segment.text for segment in segments] == ["word0 word1 word2 word3 word4 word5"]
