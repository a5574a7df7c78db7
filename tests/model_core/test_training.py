"""Losses: one utterance, one loss, whatever else is in the batch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from model_core.errors import AudioError, TextError
from model_core.training import collate, encode, make_example, row_losses

TEXTS = ("give metformin", "stop", "open an escrow account today please")


def batch(base, texts=TEXTS):
    generator = torch.Generator().manual_seed(2)
    states_BSD = torch.randn(len(texts), 40, 32, generator=generator).half()
    examples = [make_example(base.tokenizer, text) for text in texts]
    return states_BSD, *collate(examples, base.tokenizer.end)


def test_loss_equals_stock_cross_entropy(base):
    states_BSD, ids_BT, weight_BT = batch(base)
    ours = row_losses(base.model, states_BSD, ids_BT, weight_BT)
    for row, text in enumerate(TEXTS):
        length = 2 + len(base.tokenizer.encode(text)) + 1
        ids = ids_BT[row : row + 1, :length]
        stock = base.model(
            encoder_outputs=(states_BSD[row : row + 1].float(),), decoder_input_ids=ids[:, :-1]
        ).logits
        expected = functional.cross_entropy(stock[0, 1:], ids[0, 2:])
        torch.testing.assert_close(ours[row], expected, rtol=1e-4, atol=1e-4)


def test_padding_and_neighbours_do_not_change_a_row(base):
    states_BSD, ids_BT, weight_BT = batch(base)
    together = row_losses(base.model, states_BSD, ids_BT, weight_BT)
    for row, text in enumerate(TEXTS):
        ids, weights = collate([make_example(base.tokenizer, text)], base.tokenizer.end)
        alone = row_losses(base.model, states_BSD[row : row + 1], ids, weights)
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_gradient_of_a_row_is_zero_for_other_rows(base):
    states_BSD, ids_BT, weight_BT = batch(base)
    states_BSD = states_BSD.float().requires_grad_()
    row_losses(base.model, states_BSD, ids_BT, weight_BT)[1].backward()
    assert states_BSD.grad[1].abs().max() > 0
    assert states_BSD.grad[[0, 2]].abs().max() == 0


def test_weights_choose_the_targets(base):
    states_BSD, ids_BT, weight_BT = batch(base)
    doubled = row_losses(base.model, states_BSD, ids_BT, weight_BT * 2)
    torch.testing.assert_close(
        doubled, row_losses(base.model, states_BSD, ids_BT, weight_BT), rtol=1e-5, atol=1e-6
    )
    only = torch.zeros_like(weight_BT)
    only[:, 4] = 1.0
    assert not torch.allclose(row_losses(base.model, states_BSD, ids_BT, only), doubled)


def test_term_tokens_weigh_one_and_the_rest_less(base):
    example = make_example(
        base.tokenizer, "Give Metformin now.", terms=("metformin",), other_weight=0.25
    )
    spelt = [token for token, w in zip(example.ids, example.weights, strict=True) if w == 1.0]
    assert base.tokenizer.decode(spelt) == "Metformin"
    assert example.weights[:2] == (0.0, 0.0)
    assert set(example.weights[2:]) == {0.25, 1.0}


def test_several_terms_of_one_text_all_weigh_one(base):
    example = make_example(
        base.tokenizer,
        "stop warfarin and metformin",
        terms=("metformin", "escrow", "warfarin"),
        other_weight=0.0,
    )
    spelt = [token for token, w in zip(example.ids, example.weights, strict=True) if w]
    assert base.tokenizer.decode(spelt) == "warfarinmetformin"  # one token a byte


def test_text_without_the_term_weighs_one_throughout(base):
    example = make_example(base.tokenizer, "metformine", terms=("metformin",), other_weight=0.25)
    assert set(example.weights[2:]) == {1.0}


@given(text=st.text(min_size=1, max_size=30).filter(str.strip))
def test_any_text_survives_the_tokens_and_steers_nothing(base, text):
    ids = base.tokenizer.encode(f"{text} <|endoftext|>")
    assert max(ids) < 256
    assert base.tokenizer.decode(ids) == f"{text} <|endoftext|>".strip()


@settings(max_examples=20)
@given(texts=st.lists(st.sampled_from(TEXTS), min_size=1, max_size=6))
def test_collate_keeps_every_example(base, texts):
    examples = [make_example(base.tokenizer, text) for text in texts]
    ids_BT, weight_BT = collate(examples, pad=base.tokenizer.end)
    for row, example in enumerate(examples):
        length = len(example.ids)
        assert tuple(ids_BT[row, :length].tolist()) == example.ids
        assert weight_BT[row].count_nonzero() == length - 2
        assert (ids_BT[row, length:] == base.tokenizer.end).all()


@pytest.mark.parametrize(("text", "code"), [("  ", "text-empty"), ("word " * 200, "text-too-long")])
def test_unusable_texts(base, text, code):
    with pytest.raises(TextError) as caught:
        make_example(base.tokenizer, text)
    assert caught.value.code == code


def test_encoding_in_batches_equals_one_at_a_time(base):
    generator = torch.Generator().manual_seed(4)
    clips = [torch.randn(4_000, generator=generator) * 0.1 for _ in range(18)]
    states_BSD = encode(base, clips, 2.0)
    assert states_BSD.shape == (18, 100, 32)
    assert states_BSD.dtype == torch.float16
    assert not states_BSD.is_inference()
    alone = encode(base, clips[17:], 2.0)
    torch.testing.assert_close(states_BSD[17:].float(), alone.float(), rtol=0, atol=4e-3)


def test_encoding_refuses_to_cut(base):
    with pytest.raises(AudioError):
        encode(base, [torch.zeros(40_000)], 2.0)
