"""LocalAgreement-2: what is stable stays, and only what two decodings agree on becomes so."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from client_node.live.agreement import LocalAgreement, split_text

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=6), max_size=8)


@given(TEXTS)
def test_stable_words_are_never_taken_back(decodings):
    agreement = LocalAgreement()
    for words in decodings:
        before = agreement.stable
        tentative = agreement.update(words)
        assert agreement.stable[: len(before)] == before
        assert tentative == tuple(words[len(agreement.stable) :])


@given(TEXTS)
def test_one_decoding_alone_makes_nothing_stable(decodings):
    for words in decodings:
        agreement = LocalAgreement()
        agreement.update(words)
        assert agreement.stable == ()


def test_two_decodings_agree_up_to_their_first_difference():
    agreement = LocalAgreement()
    agreement.update(split_text("Take to tablets"))
    assert agreement.update(split_text("take two tablets daily")) == (" two", " tablets", " daily")
    assert agreement.stable == ("take",)
    assert agreement.update(split_text("Take two tablets, daily.")) == (" daily.",)
    assert "".join(agreement.stable) == "take two tablets,"


def test_the_last_word_is_never_stable():
    agreement = LocalAgreement()
    for _ in range(5):
        assert agreement.update(["aspirin"]) == ("aspirin",)
    assert agreement.stable == ()


@given(st.text(alphabet="ab ,。你好กขめ", max_size=30))
def test_pieces_joined_are_the_text(text):
    assert "".join(split_text(text)) == text.rstrip()


def test_scripts_without_spaces_agree_character_by_character():
    agreement = LocalAgreement()
    agreement.update(split_text("你好吗"))
    assert agreement.update(split_text("你好世界")) == ("世", "界")
    assert "".join(agreement.stable) == "你好"
