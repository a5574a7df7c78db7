"""Upcycling keeps what the model computes; the hash names what it is made of."""

import copy

import pytest
import torch

from model_core.base import make_base
from model_core.errors import WeightsError
from model_core.features import encode_mel, log_mel
from model_core.nano import nano_whisper
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig, base_sha256, mixture_named, mixtures, upcycle


def logits(model, states_BSD):
    ids_BT = torch.tensor([[1, 5, 9, 20]]).expand(len(states_BSD), -1)
    decoder = model.model.decoder
    hidden = decoder(input_ids=ids_BT, encoder_hidden_states=states_BSD, use_cache=False)
    return model.proj_out(hidden.last_hidden_state)


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("shared_fraction", [0.25, 0.5])
def test_nano_computes_the_same(top_k, shared_fraction):
    dense = nano_whisper().model
    mixed = upcycle(copy.deepcopy(dense), MixtureConfig(4, shared_fraction, top_k))
    mel_BMT = torch.randn(2, 80, 200)
    with torch.no_grad():
        states = encode_mel(dense.model.encoder, mel_BMT)
        mixed_states = encode_mel(mixed.model.encoder, mel_BMT)
        torch.testing.assert_close(mixed_states, states, rtol=0, atol=1e-4)
        torch.testing.assert_close(logits(mixed, states), logits(dense, states), rtol=0, atol=1e-4)


def test_tiny_computes_the_same_on_speech(tiny, tiny_base, clips):
    mel_BMT = log_mel(clips, 6.0)
    with torch.no_grad():
        states = encode_mel(tiny.model.model.encoder, mel_BMT)
        mixed_states = encode_mel(tiny_base.model.model.encoder, mel_BMT)
        difference = (logits(tiny_base.model, mixed_states) - logits(tiny.model, states)).abs()
    assert (mixed_states - states).abs().max() <= 1e-3
    assert difference.max() <= 1e-3


def test_tiny_writes_the_same_texts(tiny_dense, tiny_base, clips):
    dense = [each.text for each in Transcriber(tiny_dense).transcribe_many(clips)]
    mixed = [each.text for each in Transcriber(tiny_base).transcribe_many(clips)]
    assert mixed == dense
    assert all(dense)


def test_experts_are_used(base):
    """A router that always answered the same would make the mixture a fiction."""
    x_ND = torch.randn(400, 32)
    for block in mixtures(base.model):
        assert len(set(block.choose(x_ND).expert_S.tolist())) == 4


def test_a_mixture_is_not_upcycled_twice(base):
    with pytest.raises(WeightsError, match="already a mixture"):
        upcycle(base.model)


def test_copied_experts_compute_the_same_without_a_shared_part():
    dense = nano_whisper().model
    mixed = upcycle(copy.deepcopy(dense), mixture_named("copied"))
    assert mixed.model.encoder.layers[0].fc1.shared_up.out_features == 0
    states = torch.randn(2, 20, 32)
    with torch.no_grad():
        torch.testing.assert_close(logits(mixed, states), logits(dense, states), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"experts": 0},
        {"top_k": 5},
        {"shared_fraction": 1.0},
        {"variant": "copied"},
        {"variant": "split", "shared_fraction": 0.0},
        {"variant": "dense"},
    ],
)
def test_impossible_mixtures_are_refused(wrong):
    with pytest.raises(WeightsError):
        MixtureConfig(**wrong)


def test_hash_is_reproducible_and_sees_every_change():
    first = make_base(nano_whisper(), MixtureConfig())
    assert make_base(nano_whisper(), MixtureConfig()).base_sha256 == first.base_sha256
    assert make_base(nano_whisper(), MixtureConfig(seed=1)).base_sha256 != first.base_sha256
    with torch.no_grad():
        first.model.model.decoder.layers[1].fc1.experts.down_proj[3, 0, 0] += 1e-4
    assert base_sha256(first.model) != first.base_sha256


def test_upcycling_leaves_the_global_random_state_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    make_base(nano_whisper(), MixtureConfig())
    assert torch.equal(torch.rand(1), expected)
