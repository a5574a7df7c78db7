"""What the engine refuses before it runs, by name."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from privacy.errors import UnsupportedLayerError
from privacy.per_subject import PerSubjectEngine, layers_of, refuse_unsupported
from tests.privacy.per_subject_models import (
    WIDTH,
    Dense,
    Layer,
    SmallSpeech,
    adapters_on,
    peft_model,
)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"lora_dropout": 0.1}, "q_proj has dropout"),
        ({"use_dora": True}, "variant such as DoRA"),
        ({"lora_bias": True}, "a bias of its own"),
    ],
)
def test_peft_variants_are_refused(config, problem):
    with pytest.raises(UnsupportedLayerError, match=problem):
        layers_of(peft_model(**config))


def test_a_model_without_adapter_is_refused():
    with pytest.raises(UnsupportedLayerError, match="no peft adapter"):
        layers_of(Dense())
    with pytest.raises(UnsupportedLayerError, match="no adapter layer"):
        PerSubjectEngine([])


def with_module(module):
    base = Dense()
    base.extra = module
    return peft_model(base)


class CapacityRouter(nn.Module):
    expert_capacity = 64


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (nn.BatchNorm1d(4), "extra.*BatchNorm1d.*mixes"),
        (nn.SyncBatchNorm(4), "extra.*SyncBatchNorm.*mixes"),
        (nn.LazyBatchNorm1d(), "extra.*BatchNorm1d.*mixes"),
        (nn.InstanceNorm1d(4, track_running_stats=True), "extra.*InstanceNorm1d.*mixes"),
        (CapacityRouter(), "extra.*CapacityRouter.*capacity"),
    ],
)
def test_modules_that_mix_rows_are_refused_by_name(module, problem):
    model = with_module(module)
    with pytest.raises(UnsupportedLayerError, match=problem):
        refuse_unsupported(model, layers_of(model))


def test_sound_norms_pass_and_unknown_trainable_parameters_do_not():
    model = with_module(
        nn.Sequential(nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4), nn.Linear(4, 4))
    )
    layers = layers_of(model)
    refuse_unsupported(model, layers)
    model.base_model.model.extra[3].bias.requires_grad_(True)
    with pytest.raises(UnsupportedLayerError, match=r"extra\.3\.bias trains but"):
        refuse_unsupported(model, layers)


def test_factors_beside_a_core_must_not_train():
    model = SmallSpeech()
    layers = adapters_on(model, "core")
    model.query.register_parameter("outer", nn.Parameter(layers[1].up))
    with pytest.raises(UnsupportedLayerError, match=r"query\.outer trains but"):
        refuse_unsupported(model, layers)


@pytest.mark.parametrize(
    "change",
    [
        {"down": torch.zeros(4, WIDTH)},
        {"up": torch.zeros(WIDTH, 3, dtype=torch.float64)},
        {"kind": "experts"},
        {"core": torch.zeros(2, 2)},
    ],
)
def test_factors_that_do_not_fit_are_refused(change):
    fields = {"down": torch.zeros(3, WIDTH), "up": torch.zeros(WIDTH, 3), "core": None} | change
    with pytest.raises(UnsupportedLayerError, match="factors of q"):
        PerSubjectEngine([Layer("q", nn.Linear(WIDTH, WIDTH), **fields)])


def test_repeated_layers_and_foreign_packing_names_are_refused():
    layers = layers_of(peft_model())
    with pytest.raises(UnsupportedLayerError, match="share a name"):
        PerSubjectEngine([*layers, layers[0]])
    with pytest.raises(UnsupportedLayerError, match=r"packing order.*not trained: \['other'\]"):
        PerSubjectEngine(layers, tensors=["other"])
