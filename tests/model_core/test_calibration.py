"""Calibration: known confidences have known errors."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_core.calibration import calibration, score_words

SCORED = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)


@given(SCORED)
def test_error_is_bounded_and_bins_hold_every_word_once(scored):
    made = calibration(scored)
    assert 0 <= made.ece <= 1
    assert sum(each.words for each in made.bins) == made.words == len(scored)
    for each in made.bins:
        if each.words:
            assert each.low - 1e-9 <= each.confidence <= each.high + 1e-9


def test_perfect_and_worst():
    assert calibration([(1.0, True), (0.0, False)]).ece == 0
    assert calibration([(1.0, False), (0.0, True)]).ece == 1
    honest = [(0.75, True)] * 3 + [(0.75, False)]
    assert calibration(honest).ece == pytest.approx(0)


def test_bins_do_not_cancel_out():
    """Too sure here and too modest there is an error, though the means agree."""
    scored = [(0.95, False)] * 10 + [(0.05, True)] * 10
    assert calibration(scored).ece == pytest.approx(0.95)


def test_nothing_heard_and_no_probability():
    assert calibration([]) is None
    with pytest.raises(ValueError, match="no probability"):
        calibration([(1.2, True)])


def test_words_are_right_where_they_align():
    heard = [("Take", 0.9), ("too", 0.4), ("aspirin,", 0.8), ("re-start", 0.7), ("…", 0.1)]
    assert score_words("take two aspirin re start", heard) == [
        (0.9, True),
        (0.4, False),
        (0.8, True),
        (0.7, True),
        (0.7, True),
    ]


def test_words_heard_in_silence_are_wrong():
    assert score_words("...", [("you", 0.3)]) == [(0.3, False)]
    assert score_words("you", []) == []
