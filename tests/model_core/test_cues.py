"""Cues: every word once, in short pieces that end where a reader would."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.cues import MAX_CUE_CHARACTERS, MAX_CUE_S, cues
from model_core.nano import nano_tokenizer
from model_core.transcribe import Segment
from model_core.words import Word

TOKENIZER = nano_tokenizer()
WORDS = st.from_regex(r"[a-z]{1,30}[.?]?", fullmatch=True)


def segment_of(*words: tuple[float, float, str]) -> Segment:
    made = tuple(
        Word(start, end, text, 0.5, tuple(TOKENIZER.encode(text))) for start, end, text in words
    )
    ids = tuple(token for word in made for token in word.ids)
    return Segment(0.0, 27.0, TOKENIZER.decode(ids), made, -9.0, 0.25, ids)


def texts(*words: tuple[float, float, str]) -> list[str]:
    return [cue.text for cue in cues([segment_of(*words)], TOKENIZER)]


def test_cues_end_at_sentences_pauses_and_full_lines() -> None:
    assert texts((0, 1, "One."), (1, 2, "Two"), (2, 3, "three?"), (3, 4, "Four")) == [
        "One.",
        "Two three?",
        "Four",
    ]
    assert texts((0, 1, "one"), (2.5, 3, "two")) == ["one", "two"]
    assert texts((0, 4, "one"), (4, 8, "two")) == ["one", "two"]
    assert texts((0, 1, "a" * 50), (1, 2, "b" * 50)) == ["a" * 50, "b" * 50]


def test_a_cue_has_the_times_and_scores_of_its_own_words() -> None:
    first, second = cues([segment_of((1, 2, "One."), (3, 4, "Two."))], TOKENIZER)
    assert (first.start_s, first.end_s, second.start_s, second.end_s) == (1, 2, 3, 4)
    assert first.mean_log_probability == pytest.approx(math.log(0.5))
    assert first.no_speech_probability == 0.25


def test_a_segment_without_words_passes() -> None:
    plain = Segment(0.0, 1.0, "One. Two.")
    assert list(cues([plain], TOKENIZER)) == [plain]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 3), st.floats(0.01, 3), WORDS),
        min_size=1,
        max_size=40,
    )
)
def test_no_word_is_lost_and_no_cue_is_long(gaps: list[tuple[float, float, str]]) -> None:
    words, now = [], 0.0
    for gap, length, text in gaps:
        words.append((now + gap, now + gap + length, text))
        now += gap + length
    made = list(cues([segment_of(*words)], TOKENIZER))
    assert [word.text for cue in made for word in cue.words] == [text for *_, text in words]
    for cue in made:
        assert cue.text == " ".join(word.text for word in cue.words)
        assert len(cue.words) == 1 or cue.end_s - cue.start_s <= MAX_CUE_S + 1e-9
        assert len(cue.words) == 1 or len(cue.text) <= MAX_CUE_CHARACTERS
