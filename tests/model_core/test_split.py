"""The split variant: a partition of the dense block's neurons, exact where every expert runs."""

import copy
import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.base import load_base, make_base, save_base
from model_core.errors import WeightsError
from model_core.export.modules import LoopedMixture
from model_core.features import encode_mel
from model_core.nano import nano_whisper
from model_core.split import balanced_clusters, cluster_neurons
from model_core.upcycle import (
    MIXTURES,
    MixtureConfig,
    feed_forward_layers,
    mixture_named,
    mixtures,
    upcycle,
)
from tests.model_core.test_upcycle import logits

SPLIT = MixtureConfig(experts=4, shared_fraction=0.25, top_k=4, variant="split")


@settings(max_examples=25, deadline=None)
@given(clusters=st.integers(1, 6), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_clusters_are_balanced_and_hold_every_point_once(clusters, count, seed):
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(clusters * count, 5, generator=generator, dtype=torch.float64)
    rows = balanced_clusters(points, clusters, seed)
    assert rows.shape == (clusters, count)
    assert sorted(rows.flatten().tolist()) == list(range(clusters * count))
    assert torch.equal(rows, balanced_clusters(points, clusters, seed))


def test_clusters_find_what_belongs_together():
    centres = 10 * torch.eye(4, dtype=torch.float64)
    of_point = torch.arange(4).repeat(6)
    points = centres[of_point] + 0.1 * torch.randn(24, 4, dtype=torch.float64)
    rows = balanced_clusters(points, 4, seed=3)
    # Lloyd's rounds may merge groups from an unlucky start; this start is a lucky one.
    assert all(len(set(of_point[row].tolist())) == 1 for row in rows)


def test_shared_neurons_are_those_that_contribute_most():
    layer = feed_forward_layers(nano_whisper().model)[0]
    with torch.no_grad():
        layer.fc2.weight[:, [3, 40]] *= 100
    split = cluster_neurons(layer, shared=16, experts=4, top_k=2, seed=0)
    assert {3, 40} <= set(split.shared_S.tolist())
    everything = torch.cat([split.shared_S, split.expert_EH.flatten()])
    assert sorted(everything.tolist()) == list(range(64))


def test_mean_contribution_is_that_of_gaussian_tokens():
    """What experts skip in the mean, against a sample of the distribution it is computed for."""
    layer = feed_forward_layers(nano_whisper().model)[0]
    split = cluster_neurons(layer, shared=16, experts=4, top_k=2, seed=0)
    norm = layer.final_layer_norm
    x_ND = torch.randn(200_000, 32) * norm.weight + norm.bias
    with torch.no_grad():
        hidden_NF = layer.activation_fn(layer.fc1(x_ND))
        routed = split.expert_EH.flatten()
        mean_D = layer.fc2.weight[:, routed] @ hidden_NF[:, routed].mean(0)
    torch.testing.assert_close(split.skipped_mean_D, mean_D / 2, rtol=0, atol=5e-3)


def test_what_is_skipped_in_the_mean_is_in_the_bias():
    dense = nano_whisper().model
    config = dataclasses.replace(SPLIT, top_k=1)
    mixed = upcycle(copy.deepcopy(dense), config)
    for layer, block in zip(feed_forward_layers(dense), mixtures(mixed), strict=True):
        split = cluster_neurons(
            layer, shared=block.shared_up.out_features, experts=4, top_k=1, seed=0
        )
        added_D = block.shared_down.bias - layer.fc2.bias
        torch.testing.assert_close(added_D, split.skipped_mean_D, rtol=0, atol=1e-3)
        assert added_D.abs().max() > 1e-2


def test_a_token_like_an_experts_neurons_goes_to_that_expert():
    mixed = upcycle(nano_whisper().model, dataclasses.replace(SPLIT, top_k=1))
    for block in mixtures(mixed):
        centre_ED = torch.nn.functional.normalize(block.experts.up_proj.mean(1), dim=1)
        routing = block.choose(centre_ED)
        assert routing.expert_S[routing.slot_NK].flatten().tolist() == [0, 1, 2, 3]


def test_every_expert_running_is_the_dense_model():
    dense = nano_whisper().model
    mixed = upcycle(copy.deepcopy(dense), SPLIT)
    mel_BMT = torch.randn(2, 80, 200)
    with torch.no_grad():
        states = encode_mel(dense.model.encoder, mel_BMT)
        mixed_states = encode_mel(mixed.model.encoder, mel_BMT)
        torch.testing.assert_close(mixed_states, states, rtol=0, atol=1e-5)
        torch.testing.assert_close(logits(mixed, states), logits(dense, states), rtol=0, atol=1e-5)


@pytest.mark.parametrize("variant", MIXTURES)
def test_named_mixture_round_trips_through_a_folder(variant, tmp_path):
    base = make_base(nano_whisper(), mixture_named(variant))
    save_base(base, tmp_path)
    loaded = load_base(tmp_path, base.base_sha256)
    assert loaded.mixture == base.mixture
    states_BSD = torch.randn(2, 20, 32)
    with torch.no_grad():
        assert torch.equal(logits(loaded.model, states_BSD), logits(base.model, states_BSD))


@pytest.mark.parametrize("top_k", [1, 3])
def test_exported_blocks_add_their_experts_up_alike(top_k):
    """`sum` and `mean` differ from two experts on."""
    base = make_base(nano_whisper(), dataclasses.replace(SPLIT, top_k=top_k))
    x_BTD = torch.randn(2, 9, 32)
    for block in mixtures(base.model):
        with torch.no_grad():
            expected = block(x_BTD)
            torch.testing.assert_close(LoopedMixture(block)(x_BTD), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("hidden", [64, 1536, 2048, 3072, 4096, 5120])
def test_named_split_runs_about_half_of_the_neurons(hidden):
    mixture = mixture_named("split")
    shared, each = mixture.sizes(hidden)
    assert shared + mixture.experts * each == hidden
    if hidden > 64:
        assert each % 8 == 0
        assert 0.5 <= (shared + mixture.top_k * each) / hidden <= 0.55


def test_split_among_too_many_is_refused():
    with pytest.raises(WeightsError, match="cannot be split"):
        make_base(nano_whisper(), dataclasses.replace(SPLIT, experts=60))


def test_unknown_mixture_is_refused():
    with pytest.raises(WeightsError, match="no mixture"):
        mixture_named("dense")
