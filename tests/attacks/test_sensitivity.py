"""A hostile coordinator looks for a round in which one subject moves the sum by more than C."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from client_node.trainer import SpeechTrainer
from model_core.base import SpeechBase
from tests.client_node.harness import Site, make_plan

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
