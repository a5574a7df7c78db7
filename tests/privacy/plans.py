"""A small valid plan for the tests of this room."""

from __future__ import annotations

import dataclasses
from typing import Any

from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec

DELTA = 1e-6


def make_plan(**changes: Any) -> RoundPlan:
    """A plan of 10 rounds for sites "north" and "south", with `changes` to its fields."""
    plan = RoundPlan(
        job="0a1b",
        purpose="drug names",
        base_sha256="ba" * 32,
        adapter=AdapterSpec(
            kind="core",
            rank=2,
            scaling=1.0,
            target_modules=("q_proj",),
            target_parameters=(),
            tensors=(TensorSpec("core.0", (2, 2)), TensorSpec("core.1", (2, 3))),
            basis_sha256="5a" * 32,
        ),
        sampling_rate=0.25,
        noise_multiplier=2.0,
        clipping_norm=0.5,
        rounds=10,
        delta=DELTA,
        expected_subjects=100,
        max_utterances_per_subject=4,
        honest_sites=2,
        sites=("north", "south"),
        quorum=2,
        deadline_s=60.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at="2026-01-01T00:00:00Z",
    )
    return dataclasses.replace(plan, **changes)
