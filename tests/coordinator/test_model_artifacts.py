"""The door to the speech model, on a nano base: a plan's spec, and an adapter that loads back."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from coordinator.model_artifacts import SpeechArtifacts
from coordinator.request import AdapterRequest
from model_core.adapter import load_adapter
from model_core.base import load_base, save_base
from model_core.nano import nano_base

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_base(nano_base(), folder)
    return folder


@pytest.fixture(params=["core", "lora"])
def asked(request):
    return AdapterRequest(
        kind=request.param,
        rank=2,
        target_modules=("encoder_attn.q_proj",),
        target_parameters=("experts.up_proj",),
    )


def test_what_a_plan_needs(base_folder, asked):
    made = SpeechArtifacts().prepare(base_folder, asked)
    assert made.base_sha256 == load_base(base_folder).base_sha256
    assert made.initial.shape == (made.adapter.size,)
    assert made.initial.dtype == np.float32
    expected = hashlib.sha256(made.basis).hexdigest() if asked.kind == "core" else None
    assert made.adapter.basis_sha256 == expected
    assert bool(made.basis) == (asked.kind == "core")


def test_an_export_is_deterministic_and_changes_what_the_base_says(base_folder, asked):
    source = SpeechArtifacts()
    made = source.prepare(base_folder, asked)
    weights = np.random.default_rng(1).normal(size=made.adapter.size).astype(np.float32)
    adapter = source.export(base_folder, made.adapter, made.basis, weights)
    assert adapter == source.export(base_folder, made.adapter, made.basis, weights)
    assert adapter != source.export(base_folder, made.adapter, made.basis, made.initial)

    base = load_base(base_folder)
    loaded = load_adapter(base.model, adapter)
    assert any(factor.abs().sum() > 0 for _, factor in loaded.peft_factors())
