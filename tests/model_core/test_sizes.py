"""Sizes: every formula against a count of real modules and of real arithmetic."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from model_core.errors import WeightsError
from model_core.features import encode_mel
from model_core.nano import nano_whisper
from model_core.sizes import SIZES, costs, size_named
from model_core.upcycle import MIXTURES, mixtures, upcycle_structure

# The published checkpoints' own counts (transformers' num_parameters), where they are known.
PUBLISHED = {"tiny": 37_760_640, "base": 72_593_920, "small": 241_734_912, "medium": 763_857_920}
PUBLISHED |= {"tiny.en": 37_760_256, "large-v3": 1_543_490_560}
VARIANTS = (None, *MIXTURES)


def on_meta(name, variant=None):
    config = size_named(name).whisper_config()
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = WhisperForConditionalGeneration(config)
    return model if variant is None else upcycle_structure(model, MIXTURES[variant])


def mixture(variant):
    return None if variant is None else MIXTURES[variant]


def decode(model, states_BSD, tokens):
    """One token a step, with a cache, as decoding does."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids_B1 = torch.zeros(1, 1, dtype=torch.long, device=states_BSD.device)
    for _ in range(tokens):
        hidden = model.model.decoder(
            input_ids=ids_B1,
            encoder_hidden_states=states_BSD,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        model.proj_out(hidden)
    return cache


@torch.no_grad()
def measure(model, window_s, tokens):
    """FLOPs of encoder and decoder, and bytes of the cache, of one window."""
    config = model.config
    mel_BMT = torch.zeros(1, config.num_mel_bins, int(window_s * 100), device=model.device)
    with FlopCounterMode(display=False) as encoder:
        states_BSD = encode_mel(model.model.encoder, mel_BMT)
    with FlopCounterMode(display=False) as decoder:
        cache = decode(model, states_BSD, tokens)
    both = (cache.self_attention_cache, cache.cross_attention_cache)
    tensors = [t for half in both for layer in half.layers for t in (layer.keys, layer.values)]
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return encoder.get_total_flops(), decoder.get_total_flops(), size_bytes


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_those_of_the_modules(name, variant):
    counted = costs(size_named(name), mixture(variant))
    model = on_meta(name, variant)
    assert counted.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert counted.weights_bytes == 4 * counted.parameters
    idle = 0
    for block in mixtures(model) if variant else ():
        experts = sum(parameter.numel() for parameter in block.experts.parameters())
        spare = MIXTURES[variant].experts - block.top_k
        idle += experts * spare // MIXTURES[variant].experts
    assert counted.active_parameters == counted.parameters - idle


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_their_published_counts(name):
    assert costs(size_named(name)).parameters == PUBLISHED[name]


LARGE = {"medium", "large-v3", "7b"}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in SIZES]
)
def test_dense_arithmetic_is_what_runs(name):
    counted = costs(size_named(name), window_s=4.0, tokens=3)
    measured = measure(on_meta(name), 4.0, 3)
    assert (counted.encoder_flops, counted.decoder_flops, counted.cache_bytes) == measured
    assert counted.flops_per_s == (measured[0] + measured[1]) / 4.0


@pytest.mark.parametrize("variant", MIXTURES)
def test_mixture_arithmetic_is_what_runs(variant):
    """On real tensors, because routing reads values."""
    model = upcycle_structure(nano_whisper().model, MIXTURES[variant])
    model.set_attn_implementation("eager")
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for block in mixtures(model):
        block.experts.kernel = "loop"  # plain products, which the counter knows
    counted = costs(size_named("nano"), MIXTURES[variant], window_s=4.0, tokens=5)
    measured = measure(model, 4.0, 5)
    assert (counted.encoder_flops, counted.decoder_flops, counted.cache_bytes) == measured


def test_nano_is_the_nano_of_the_tests():
    """And stays under a million parameters."""
    config = nano_whisper().model.config
    ours = size_named("nano").whisper_config()
    same = ("vocab_size", "d_model", "encoder_ffn_dim", "decoder_layers", "num_mel_bins")
    assert [getattr(ours, name) for name in same] == [getattr(config, name) for name in same]
    assert costs(size_named("nano"), MIXTURES["upcycled-shared"]).parameters < 1_000_000


def test_7b_is_named_by_its_mixture():
    counted = costs(size_named("7b"), MIXTURES["upcycled-shared"])
    assert counted.parameters == pytest.approx(7e9, rel=0.03)


def test_copies_cost_no_arithmetic_and_splits_save_some():
    """Top-1 of copies is the dense arithmetic plus the routers'."""
    for name in ("tiny.en", "7b"):
        size = size_named(name)
        dense, split = costs(size), costs(size, MIXTURES["split"])
        for variant in ("upcycled-shared", "copied"):
            mixed = costs(size, MIXTURES[variant])
            assert dense.flops_per_s < mixed.flops_per_s < 1.005 * dense.flops_per_s
        assert split.flops_per_s < dense.flops_per_s
        assert split.parameters < 1.01 * dense.parameters


def test_unknown_size():
    with pytest.raises(WeightsError, match="no size"):
        size_named("huge")
