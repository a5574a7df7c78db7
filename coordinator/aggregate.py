"""Aggregation of a round: the sum of the sites' noisy sums over the plan's public divisor.

Updates are streamed one at a time in the order given (callers give site-name order, so that the
result does not depend on who answered first) and summed in float64: memory is two vectors, however
many sites there are. Shape legend: D = trainable numbers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

FLOAT32_BYTES = 4

Vector = NDArray[np.float32]
Gradient = NDArray[np.float64]


def unpack(payload: bytes) -> Vector:
    """A packed update as float32 [D]; little-endian on every machine."""
    return np.frombuffer(payload, dtype="<f4").astype(np.float32, copy=False)


def pack(vector_D: Vector) -> bytes:
    """The inverse of `unpack`."""
    return vector_D.astype("<f4", copy=False).tobytes()


def aggregate(payloads: Iterable[bytes], size: int, divisor: float) -> Gradient:
    """Mean clipped gradient (Σ_i g_i) / (n·q·N̄) as float64 [D].

    In rounds of one step this is federated averaging (McMahan et al. 2017, FedSGD). Robust rules
    are in `coordinator.robust`.

    Args:
        payloads: admitted updates, each `size` float32 numbers.
        size: D.
        divisor: the plan's public divisor; never a realised cohort or survivor count.
    """
    sum_D = np.zeros(size, dtype=np.float64)
    for payload in payloads:
        sum_D += unpack(payload)
    return sum_D / divisor
