"""Expected words: which tokens get a bonus after which, and what stays as the model has it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.errors import TextError
from model_core.term_bias import TermBias
from model_core.transcribe import DecodingOptions, Transcriber

BEGIN, CONTINUE = 2.0, 8.0


def bias(base, *terms):
    return TermBias(base.tokenizer, terms, begin_bonus=BEGIN, continue_bonus=CONTINUE)


def test_a_term_is_begun_anywhere_and_gone_on_with_only_after_its_beginning(base):
    made = bias(base, "metformin")
    ids = base.tokenizer.encode("metformin")
    assert len(ids) > 1
    assert made.bonuses([])[ids[0]] == BEGIN
    for length in range(1, len(ids)):
        assert made.bonuses([7, *ids[:length]])[ids[length]] == CONTINUE
    assert ids[1] not in made.bonuses([])
    # Whole: only beginnings again.
    assert set(made.bonuses(ids)) == set(made.bonuses([]))


def test_capitalised_terms_are_expected_too(base):
    made = bias(base, "metformin")
    upper = base.tokenizer.encode("Metformin")
    assert upper[0] in made.bonuses([])
    assert made.bonuses(upper[:1])[upper[1]] == CONTINUE


def test_terms_that_begin_alike_share_their_beginning(base):
    first, second = (base.tokenizer.encode(w) for w in ("thoracentesis", "thoracotomy"))
    shared = [a for a, b in zip(first, second, strict=False) if a == b]
    assert shared
    after = bias(base, "thoracentesis", "thoracotomy").bonuses(shared)
    assert after[first[len(shared)]] == after[second[len(shared)]] == CONTINUE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 300), max_size=6), min_size=1, max_size=4))
def test_logits_change_by_the_bonuses_and_nothing_else(base, written):
    made = bias(base, "warfarin", "escrow")
    logits_NV = torch.randn(len(written), 51864)
    logits_NV[:, 5] = -torch.inf
    before_NV = logits_NV.clone()
    changed_NV = made.apply(logits_NV, written)
    assert torch.equal(logits_NV, before_NV)
    for before_V, changed_V, ids in zip(before_NV, changed_NV, written, strict=True):
        expected_V = before_V.clone()
        for token, bonus in made.bonuses(ids).items():
            expected_V[token] += bonus
        assert torch.equal(changed_V, expected_V)
        assert changed_V[5] == -torch.inf


def test_an_empty_term_is_refused(base):
    with pytest.raises(TextError):
        bias(base, "warfarin", "  ")
    with pytest.raises(TextError):
        Transcriber(base).asked(DecodingOptions(boosted_terms=("",)))


def test_several_beams_do_not_boost(base):
    with pytest.raises(ValueError, match="greedy"):
        Transcriber(base, beams=2).asked(DecodingOptions(boosted_terms=("escrow",)))


def test_a_boosted_term_is_written_with_the_models_own_confidence(base, clips):
    """A bonus too large to refuse writes the term; its words stay as unlikely as they are."""
    plain = Transcriber(base)
    made = plain.asked(DecodingOptions(boosted_terms=("escrow",)))
    made._boost = TermBias(base.tokenizer, ("escrow",), begin_bonus=1e4, continue_bonus=2e4)
    heard = made.transcribe(clips[0], words=True)
    assert "escrow" in heard.text.lower()
    words = [word for segment in heard.segments for word in segment.words]
    assert all(0 <= word.confidence <= 1 for word in words)
    assert min(word.confidence for word in words) < 0.5
    assert plain.transcribe(clips[0]).text != heard.text


def test_a_draft_is_the_text_or_nothing(base, clips):
    plain = Transcriber(base)
    assert plain.draft(torch.zeros(16_000)) == ""
    for clip in clips[:2]:
        draft = plain.draft(clip)
        assert draft is None or draft == plain.transcribe(clip).text
