"""Scores: properties that hold for any text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.evaluate import (
    TermScore,
    character_error_rate,
    normalise,
    term_accuracy,
    word_error_rate,
)

WORDS = st.lists(st.sampled_from(["lien", "sinking", "fund", "warfarin", "the"]), min_size=1)
SENTENCE = WORDS.map(" ".join)


@given(st.text())
def test_normalising_twice_is_normalising_once(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Re-record, it's 5 o’clock! ", "re record it's 5 o'clock"),
        ("'quoted' — dash", "quoted dash"),
        ("Zürich № ＡＢＣ", "zürich no abc"),
        ("...", ""),
    ],
)
def test_normalisation_examples(text, expected):
    assert normalise(text) == expected


@given(st.lists(SENTENCE, min_size=1, max_size=5))
def test_perfect_transcripts_have_no_errors(texts):
    assert word_error_rate(texts, [text.upper() + "." for text in texts]) == 0


@given(st.lists(SENTENCE, min_size=1, max_size=5))
def test_empty_hypotheses_lose_every_word(texts):
    assert word_error_rate(texts, [""] * len(texts)) == 1


def test_errors_are_pooled_over_words_not_averaged_over_clips():
    assert word_error_rate(["a", "b c d"], ["x", "b c d"]) == pytest.approx(1 / 4)


def test_words_heard_in_silence_are_insertions():
    assert word_error_rate(["a b", "..."], ["a b", "thank you"]) == 1


@pytest.mark.parametrize(("references", "hypotheses"), [([], []), (["."], ["a"]), (["a"], [])])
def test_impossible_comparisons(references, hypotheses):
    with pytest.raises(ValueError):  # noqa: PT011 - either of two messages
        word_error_rate(references, hypotheses)


@given(SENTENCE, SENTENCE)
def test_term_score_is_bounded_and_perfect_on_itself(reference, hypothesis):
    terms = ["sinking fund", "lien", "Warfarin"]
    own = term_accuracy([reference], [reference], terms)
    score = term_accuracy([reference], [hypothesis], terms)
    assert own.right == own.total == score.total
    assert 0 <= score.right <= score.total


def test_each_occurrence_counts_and_the_longest_term_wins():
    terms = ["debenture", "subordinated debenture", "lien"]
    references = ["a subordinated debenture and a lien, a lien", "no term here"]
    heard = ["a subordinate debenture and a lien", "lien lien lien"]
    assert term_accuracy(references, heard, terms) == TermScore(right=1, total=3)
    assert TermScore(0, 0).accuracy == 0


def test_characters_count_without_spaces():
    assert character_error_rate(["On call"], ["oncall."]) == 0
    assert character_error_rate(["abcd", "ef"], ["abxd", "ef"]) == pytest.approx(1 / 6)
    assert character_error_rate(["打开账户"], ["打开帐户"]) == pytest.approx(1 / 4)


@given(st.lists(SENTENCE, min_size=1, max_size=5))
def test_character_and_word_errors_agree_on_all_and_nothing(texts):
    assert character_error_rate(texts, texts) == 0
    assert character_error_rate(texts, [""] * len(texts)) == 1
