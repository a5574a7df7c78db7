"""The server's optimiser: post-processing of a private aggregate, so it costs no ε.

SGD (at learning rate 1 federated averaging of one-step rounds, McMahan et al. 2017), Adam (Kingma &
Ba 2015, algorithm 1, with bias correction; as a server's optimiser FedAdam, Reddi et al. 2021) and
LAMB (You et al. 2020, algorithm 2, without weight decay: Adam's step scaled in each tensor to the
norm of its weights) over one flat vector, in float64 with the weights rounded to float32, the
precision in which they travel. The state is part of the job's checkpoint: a resumed job continues
bit for bit. Shape legend: D = trainable numbers.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Self

import numpy as np
from safetensors.numpy import load, save

from coordinator.aggregate import Gradient, Vector
from privacy.plan import OptimiserSpec


@dataclasses.dataclass(frozen=True)
class OptimiserState:
    """Moments, float64 [D], and step count. SGD leaves the moments at zero."""

    step: int
    first: Gradient
    second: Gradient

    @classmethod
    def initial(cls, size: int) -> Self:
        """State before the first step over `size` numbers."""
        return cls(0, np.zeros(size), np.zeros(size))

    def to_bytes(self) -> bytes:
        """Safetensors bytes."""
        step = np.array([self.step], dtype=np.int64)
        return save({"step": step, "first": self.first, "second": self.second})

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """The inverse of `to_bytes`."""
        tensors = load(data)
        return cls(int(tensors["step"][0]), tensors["first"], tensors["second"])


def apply(
    spec: OptimiserSpec,
    weights_D: Vector,
    gradient_D: Gradient,
    state: OptimiserState,
    rounds: int,
    *,
    layer_sizes: Sequence[int] = (),
) -> tuple[Vector, OptimiserState]:
    """One step of `rounds` down `gradient_D`: new float32 weights and the state after it.

    `layer_sizes` are the sizes of the tensors in the vector, in order, which LAMB treats apart;
    without them it is one.
    """
    step = state.step + 1
    match spec.name:
        case "sgd":
            change_D = gradient_D
            after = dataclasses.replace(state, step=step)
        case "adam" | "lamb":
            first_D = spec.beta1 * state.first + (1 - spec.beta1) * gradient_D
            second_D = spec.beta2 * state.second + (1 - spec.beta2) * gradient_D**2
            mean_D = first_D / (1 - spec.beta1**step)
            scale_D = np.sqrt(second_D / (1 - spec.beta2**step)) + spec.eps
            change_D = mean_D / scale_D
            if spec.name == "lamb":
                change_D = _scaled_by_layer(change_D, weights_D, layer_sizes)
            after = OptimiserState(step, first_D, second_D)
    decay = 1 - state.step / rounds if spec.schedule == "linear" else 1.0
    moved_D = weights_D.astype(np.float64) - spec.learning_rate * decay * change_D
    return moved_D.astype(np.float32), after


def _scaled_by_layer(change_D: Gradient, weights_D: Vector, layer_sizes: Sequence[int]) -> Gradient:
    """`change_D` with each layer's part at the norm of that layer's weights.

    A layer that is all zero, as adapters begin, or has no change keeps its change: its trust ratio
    is 1, as in the authors' own code.
    """
    scaled_D = change_D.copy()
    bounds = np.cumsum([0, *(layer_sizes or [len(change_D)])])
    for start, stop in itertools.pairwise(bounds.tolist()):
        weight_norm = float(np.linalg.norm(weights_D[start:stop].astype(np.float64)))
        change_norm = float(np.linalg.norm(change_D[start:stop]))
        if weight_norm > 0 and change_norm > 0:
            scaled_D[start:stop] *= weight_norm / change_norm
    return scaled_D
