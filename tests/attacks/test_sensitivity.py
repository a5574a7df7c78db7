"""A hostile coordinator looks for a round in which one subject moves the sum by more than C."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor

from client_node import trainer as trainer_module
from client_node.errors import RefusalError
from client_node.trainer import SpeechTrainer
from client_node.weights import MAX_WEIGHT, ROUNDING_MARGIN, require_trainable
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


@pytest.mark.parametrize("scale", [0.1, 1.0, MAX_WEIGHT / 5])
def test_no_weights_let_a_subject_move_the_sum_beyond_the_clipping_norm(
    site: Site, nano: SpeechBase, scale: float
) -> None:
    """What shares a batch shares its rounding; the margin below the clipping norm covers it."""
    for number, text in enumerate(TEXTS):
        site.record(f"s{number}", text, seconds=2.4 if number == 4 else 0.4)
    parts = site.parts()
    plan, basis = make_plan(nano, privacy_mode="none", noise_multiplier=0.0, sampling_rate=1.0)
    values = np.random.default_rng(7).standard_normal(plan.adapter.size)
    vector = np.clip(scale * values, -MAX_WEIGHT, MAX_WEIGHT).astype("<f4").tobytes()
    require_trainable(vector)

    def total(cohort: list[int]) -> Tensor:
        trainer = SpeechTrainer(parts.base, parts.store, parts.features, Chosen(cohort), 3)
        update = trainer.train(plan, basis, 1, vector).payload
        return torch.frombuffer(bytearray(update), dtype=torch.float32).double()

    everybody = list(range(len(TEXTS)))
    whole = total(everybody)
    moved = [
        float((whole - total([i for i in everybody if i != absent])).norm()) for absent in everybody
    ]
    assert 0 < max(moved) <= plan.clipping_norm


@pytest.mark.parametrize("one_subject_per_step", [False, True])
def test_with_one_subject_a_step_nobody_moves_anybody_elses_gradient(
    site: Site,
    nano: SpeechBase,
    monkeypatch: pytest.MonkeyPatch,
    one_subject_per_step: bool,
) -> None:
    """The sum of all is that of each alone: to the margin, or to the rounding of float64."""
    for number, text in enumerate(TEXTS[:4]):
        site.record(f"s{number}", text)
        site.record(f"s{number}", f"{text} again")
    parts = site.parts()
    plan, basis = make_plan(nano, privacy_mode="none", noise_multiplier=0.0, sampling_rate=1.0)
    values = np.random.default_rng(7).standard_normal(plan.adapter.size)
    sums = []
    monkeypatch.setattr(trainer_module, "privatise", lambda sum_D, *_: sums.append(sum_D) or sum_D)

    def total(cohort: list[int]) -> Tensor:
        trainer = SpeechTrainer(
            parts.base,
            parts.store,
            parts.features,
            Chosen(cohort),
            3,
            one_subject_per_step=one_subject_per_step,
        )
        trainer.train(plan, basis, 1, values.astype("<f4").tobytes())
        return sums.pop()

    apart = total([0, 1, 2, 3]) - sum(total([index]) for index in range(4))
    shared = 1e-12 if one_subject_per_step else ROUNDING_MARGIN
    assert float(apart.norm()) <= shared * plan.clipping_norm


@pytest.mark.parametrize("value", [1e4, -1e18, float("inf"), float("nan"), 4.001])
def test_weights_that_would_turn_rounding_into_chaos_cost_nothing_and_train_nothing(
    site: Site, coordinator: Coordinator, nano: SpeechBase, value: float
) -> None:
    site.record("ann", "take one tablet")
    plan, basis = make_plan(nano)
    agent = site.agent()
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    weights = np.zeros(plan.adapter.size, "<f4")
    weights[-1] = value
    reply = agent.handle(coordinator.order(plan, 1, weights.tobytes()))
    assert reply.kind == "refused"
    assert site.answer(reply).code == "weights-out-of-range"
    _, budget = site.books()
    assert budget.spent(plan.purpose).epsilon_loc == 0


def test_weights_that_are_no_array_are_refused() -> None:
    with pytest.raises(RefusalError, match="4 bytes"):
        require_trainable(b"123")


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
    require_trainable(np.random.default_rng(7).standard_normal(64).astype("<f4").tobytes())
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
    agent = site.agent()
    if agent.handle(coordinator.prepare(plan, basis)).kind == "refused":
        return
    vector = np.random.default_rng(7).standard_normal(spec.size).astype("<f4").tobytes()

    trainer = SpeechTrainer(parts.base, parts.store, parts.features, Chosen([0, 1]), 3)
    with pytest.raises(RefusalError) as refused:
        trainer.train(plan, basis, 1, vector)
    assert refused.value.code == "weights-out-of-range"
    # Found before the round is reserved, so that such an order costs nothing.
    reply = agent.handle(coordinator.order(plan, 1, vector))
    assert site.answer(reply).code == "weights-out-of-range"
    state = site.books()[1].spent(plan.purpose)
    assert state.reserved + state.committed == 0
