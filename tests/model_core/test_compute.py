"""The formula of a transcription's FLOPs against torch's own counter on the running model."""

import pytest
import torch
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from model_core.compute import active_share, flop_counter, transcription_flops
from model_core.features import encode_mel
from model_core.nano import nano_base, nano_whisper
from model_core.silent_tail import TailedEncoder
from model_core.sizes import costs, size_named
from model_core.upcycle import MixtureConfig, feed_forward_layers

MIXTURES = {
    "dense": None,
    "upcycled-shared": MixtureConfig(),
    "split": MixtureConfig(4, 0.25, 2, variant="split"),
    "split encoder": MixtureConfig(4, 0.25, 1, variant="split", decoder_top_k=4),
}


def model_of(name):
    mixture = MIXTURES[name]
    return nano_whisper().model if mixture is None else nano_base(mixture=mixture).model


@torch.no_grad()
def decode(model, states_BSD, prefix, tokens):
    """The prefix at once, then a token a step from the cache."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    ids_BT = torch.ones(1, prefix, dtype=torch.long)
    for _ in range(tokens):
        hidden = model.model.decoder(
            input_ids=ids_BT,
            encoder_hidden_states=states_BSD,
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        model.proj_out(hidden)
        ids_BT = torch.ones(1, 1, dtype=torch.long)


@pytest.mark.parametrize("name", MIXTURES)
@pytest.mark.parametrize(("states", "prefix", "tokens"), [(30, 2, 1), (57, 3, 6)])
def test_count_is_what_runs(name, states, prefix, tokens):
    model = model_of(name)
    with flop_counter() as encoding, torch.no_grad():
        states_BSD = encode_mel(model.model.encoder, torch.randn(1, 80, 2 * states))
    with flop_counter() as decoding:
        decode(model, states_BSD, prefix, tokens)
    flops = transcription_flops(model, states, prefix, tokens)
    encoder = flops.convolutions + flops.encoder_attention + flops.encoder_feed_forward
    assert encoder == encoding.get_total_flops()
    assert flops.total - encoder == decoding.get_total_flops()


def test_remembered_silence_is_attended_to_and_not_encoded():
    model = model_of("upcycled-shared")
    encoder = TailedEncoder(model.model.encoder)
    mel_1MT = torch.full((1, 80, 2 * 30), 0.4)
    with torch.no_grad():
        encoder(mel_1MT, [60])  # silence of this level is encoded here, once and for all
        with flop_counter() as encoding:
            states_BXD, _ = encoder(mel_1MT, [60])
    with flop_counter() as decoding:
        decode(model, states_BXD, 2, 3)
    flops = transcription_flops(model, 30, 2, 3, remembered=states_BXD.shape[1] - 30)
    own = flops.convolutions + flops.encoder_attention + flops.encoder_feed_forward
    assert own == encoding.get_total_flops()
    assert flops.total - own == decoding.get_total_flops()


@pytest.mark.parametrize("name", MIXTURES)
def test_shapes_and_modules_count_alike(name):
    """`sizes.costs` counts from a size, `transcription_flops` from a model."""
    counted = costs(size_named("nano"), MIXTURES[name], window_s=1.2, tokens=4)
    flops = transcription_flops(model_of(name), 60, 1, 4)  # the prefix's one position, three steps
    encoder = flops.convolutions + flops.encoder_attention + flops.encoder_feed_forward
    assert (counted.encoder_flops, counted.decoder_flops) == (encoder, flops.total - encoder)


def test_active_share_is_of_the_units_that_run():
    shares = [active_share(layer) for layer in feed_forward_layers(model_of("split encoder"))]
    # 64 units: 4 experts of 8 leave 32 shared, a multiple of 8 being the rule.
    assert shares == [(32 + 8) / 64] * 2 + [1.0] * 2
    assert {active_share(layer) for layer in feed_forward_layers(model_of("dense"))} == {1.0}
