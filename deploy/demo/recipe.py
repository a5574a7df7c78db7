"""The demo's constants, and where they come from: docs/lab-notes.md."""

from __future__ import annotations

import dataclasses
from typing import Any

PURPOSE = "transcription"
DELTA = 1e-5
EPSILON_CAP = 8.0


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One job of the demo.

    Attributes:
        subjects: speakers who train, per site; the public constant N̄ of the plan.
        heldout: held-out speakers per site.
        general: held-out speakers of general sentences, for all sites together.
        public: public speakers for the adapter's frozen basis.
        sampling_rate: q.
        rounds: T.
        epsilon: target ε_loc of the whole job.
    """

    subjects: int = 1600
    heldout: int = 40
    general: int = 20
    public: int = 400
    sampling_rate: float = 0.09375
    rounds: int = 20
    epsilon: float = EPSILON_CAP
    clipping_norm: float = 8.0
    learning_rate: float = 0.025
    context_weight: float = 0.2
    rank: int = 16
    target_modules: tuple[str, ...] = (
        r"decoder\.layers\.[23]\.self_attn\.(q|v|out)_proj",
        r"decoder\.layers\.[23]\.encoder_attn\.(q|out)_proj",
    )
    target_parameters: tuple[str, ...] = (r"decoder\.layers\.[23]\..*experts\.(up|down)_proj",)

    def request(self, *, private: bool, basis: str | None) -> dict[str, Any]:
        """Fields of the job request; without noise where not `private`, all else the same."""
        privacy = {"epsilon": self.epsilon} if private else {"privacy_mode": "none"}
        return {
            "purpose": PURPOSE,
            "rounds": self.rounds,
            "sampling_rate": self.sampling_rate,
            "clipping_norm": self.clipping_norm,
            "delta": DELTA,
            "expected_subjects": self.subjects,
            "context_weight": self.context_weight,
            "adapter": {
                "kind": "core",
                "rank": self.rank,
                "target_modules": list(self.target_modules),
                "target_parameters": list(self.target_parameters),
                "basis": basis,
            },
            "optimiser": {
                "name": "adam",
                "learning_rate": self.learning_rate,
                "schedule": "linear",
            },
            **privacy,
        }


QUICK = Recipe(subjects=48, heldout=4, general=4, public=40, sampling_rate=0.25, rounds=3)
"""Every step in two minutes; far too few subjects to learn anything under privacy."""
