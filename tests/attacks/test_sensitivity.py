"""A hostile coordinator looks for a round in which one subject moves the sum by more than C."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from client_node.trainer import SpeechTrainer
from model_core.base import SpeechBase
from model_core.basis import basis_from_bytes, basis_to_bytes
from tests.client_node.harness import Coordinator, Site, make_plan

TEXTS = (
    "take one tablet twice a day",
    "warfarin",
    "no penicillin please for this patient ever",
    "insulin",
    "heparin",
    "dose",
    "give two units now",
)


class Chosen:
    """Samples whom it is told, and adds no noise: what is left is the clipped sum."""

    name = "chosen"

    def __init__(self, cohort: list[int]) -> None:
        self._cohort = cohort

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        return self._cohort

    def normal(self, size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e8, 1e12, 1e18])
def test_no_weights_let_a_subject_move_the_sum_beyond_the_clipping_norm(
    site: Site, nano: SpeechBase, scale: float
) -> None:
    """Huge weights turn rounding into chaos: what shares a batch decides every gradient in it."""
    for number, text in enumerate(TEXTS):
        site.record(f"s{number}", text, seconds=2.4 if number == 4 else 0.4)
    parts = site.parts()
    plan, basis = make_plan(nano, privacy_mode="none", noise_multiplier=0.0, sampling_rate=1.0)
    values = np.random.default_rng(7).standard_normal(plan.adapter.size)
    vector = (scale * values).astype("<f4").tobytes()

    def total(cohort: list[int]) -> Tensor:
        trainer = SpeechTrainer(parts.base, parts.store, parts.features, Chosen(cohort), 3)
        update = trainer.train(plan, basis, 1, vector)
        return torch.frombuffer(bytearray(update), dtype=torch.float32).double()

    everybody = list(range(len(TEXTS)))
    whole = total(everybody)
    moved = [
        float((whole - total([i for i in everybody if i != absent])).norm()) for absent in everybody
    ]
    assert max(moved) <= plan.clipping_norm * (1 + 1e-6)


@pytest.mark.parametrize(
    ("basis_factor", "scaling"), [(1e4, 1.0), (1e6, 1.0), (1.0, 1e9), (1.0, 1e16)]
)
def test_no_basis_or_scaling_does_so_either(
    site: Site,
    nano: SpeechBase,
    coordinator: Coordinator,
    basis_factor: float,
    scaling: float,
) -> None:
    """The adapter's output is scaling · U R A x: small weights R alone bound nothing of it."""
    for number, text in enumerate(TEXTS):
        site.record(f"s{number}", text, seconds=2.4 if number == 4 else 0.4)
    parts = site.parts()
    plan, basis = make_plan(nano, privacy_mode="none", noise_multiplier=0.0, sampling_rate=1.0)
    factors = {name: basis_factor * factor for name, factor in basis_from_bytes(basis).items()}
    basis = basis_to_bytes(factors)
    spec = dataclasses.replace(
        plan.adapter, scaling=scaling, basis_sha256=hashlib.sha256(basis).hexdigest()
    )
    plan = dataclasses.replace(plan, adapter=spec)
    if site.agent().handle(coordinator.prepare(plan, basis)).kind == "refused":
        return
    vector = np.random.default_rng(7).standard_normal(spec.size).astype("<f4").tobytes()

    def total(cohort: list[int]) -> Tensor:
        trainer = SpeechTrainer(parts.base, parts.store, parts.features, Chosen(cohort), 3)
        update = trainer.train(plan, basis, 1, vector)
        return torch.frombuffer(bytearray(update), dtype=torch.float32).double()

    everybody = list(range(len(TEXTS)))
    whole = total(everybody)
    moved = [
        float((whole - total([i for i in everybody if i != absent])).norm()) for absent in everybody
    ]
    assert max(moved) <= plan.clipping_norm * (1 + 1e-6)
