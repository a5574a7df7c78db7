"""Which adapter weights a site trains at: those at which clipping bounds a subject's influence.

Recordings that go through the model together share the rounding of its products, so one subject's
presence moves the gradients of others in their last digits. In float32, and at weights of a size
that training reaches, that stays far below `ROUNDING_MARGIN` of the clipping norm, which clipping
leaves free for it. Weights chosen to turn rounding into chaos would make it as large as a gradient:
an order with such weights is refused before anything is spent, and so is an adapter whose basis and
scaling make small weights large. (In bfloat16 one subject could move another's gradient by a
percent, so training is never in it.)
"""

from __future__ import annotations

import numpy as np
import torch

from client_node.errors import RefusalError
from model_core.adapter import Adapter

FLOAT32_BYTES = 4
ROUNDING_MARGIN = 1e-3
MAX_WEIGHT = 4.0
MAX_RELATIVE_DELTA = 4.0


def require_trainable(vector: bytes) -> None:
    """Refuse an adapter's numbers, packed little-endian float32, that clipping cannot bound.

    Raises RefusalError: "payload-mismatch" for bytes that are no float32 array, and
    "weights-out-of-range" for a number that is not finite or larger than `MAX_WEIGHT`.
    """
    if len(vector) % FLOAT32_BYTES:
        raise RefusalError(
            "payload-mismatch",
            "the weights are not whole numbers of 4 bytes",
            remedy="check that coordinator and site run the same version of Auricle",
        )
    weights_D = np.frombuffer(vector, "<f4")
    if not bool(np.all(np.abs(weights_D) <= MAX_WEIGHT)):  # False for NaN too
        raise RefusalError(
            "weights-out-of-range",
            f"an order asks for training at weights that are not finite or above {MAX_WEIGHT}",
            remedy="let the operator lower the learning rate; honest training stays below one",
        )


@torch.no_grad()
def require_bounded(adapter: Adapter) -> None:
    """Refuse an adapter that outweighs a layer it adapts: ‖s·U R A‖ > 4·‖W‖ in Frobenius norm.

    Frozen factors and scaling come from the coordinator as the weights do, and only their product
    says what the adapter does. Raises RefusalError "weights-out-of-range".
    """
    for layer in adapter.layers:
        inner = layer.up if layer.core is None else layer.up @ layer.core
        delta = layer.scaling * torch.linalg.matrix_norm(inner @ layer.down)
        limit = MAX_RELATIVE_DELTA * torch.linalg.matrix_norm(
            getattr(layer.module, layer.parameter or "weight")
        )
        if not bool((delta <= limit).all()):  # False for NaN too
            raise RefusalError(
                "weights-out-of-range",
                f"the adapter of {layer.name} outweighs the layer",
                remedy="let the operator lower the learning rate or the adapter's scaling",
            )
