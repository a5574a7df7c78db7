"""The autograd function of a low-rank adapter that hands out per-subject gradients.

Shapes: B rows, T tokens, S expert-sorted slots, U subjects, E experts, r rank. `x` is [B, T, in]
or [S, in] as its grouping says; the factors carry a leading E for experts.

With h = x Aᵀ, m = h Rᵀ and y = s·m Bᵀ, and the gradient g of y:

    LoRA (R = I):  dB = s·gᵀ h,  u = s·g B,  dA = uᵀ x,  dx = u A
    core:                        u = s·g B,  dR = uᵀ h,  dx = (u R) A

Each sum over tokens stops at the edge of a subject (`grouping.add_outer`); nothing else differs
from the batch gradient. (LoRA: Hu et al. 2021, arXiv 2106.09685; an r x r core between frozen
factors: LoRA-XS, Bałazy et al. 2024, arXiv 2405.17604.)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from privacy.per_subject.grouping import Grouping


@dataclasses.dataclass(frozen=True)
class Factors:
    """The adapter's tensors at this step, detached, and where their gradients are added.

    `down_grad`, `up_grad` and `core_grad` are views of the caller's gradient rows, each with a
    leading subject axis; exactly the trained ones are present.
    """

    down: Tensor
    up: Tensor
    core: Tensor | None
    scaling: float
    down_grad: Tensor | None = None
    up_grad: Tensor | None = None
    core_grad: Tensor | None = None


class AdapterFunction(torch.autograd.Function):
    """`base + scaling · x Aᵀ Rᵀ Bᵀ`; backward adds per-subject gradients to the factors' views.

    `anchor` is a leaf that requires gradients, so that backward reaches this node even where
    nothing below it trains; its gradient is always None.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd passes positions
        ctx: Any,
        x: Tensor,
        base: Tensor | None,
        anchor: Tensor,  # noqa: ARG004 - its edge in the graph is what counts
        factors: Factors,
        grouping: Grouping,
    ) -> Tensor:
        """Return the adapted output, in the shape of `base` where given."""
        h = grouping.times(x, factors.down)
        middle = h if factors.core is None else grouping.times(h, factors.core)
        # The input itself is needed for dA only.
        ctx.save_for_backward(h, x if factors.core is None else None)
        ctx.factors = factors
        ctx.grouping = grouping
        if base is None:
            return grouping.times(middle, factors.up).mul_(factors.scaling)
        flat = torch.addmm(
            base.reshape(-1, base.shape[-1]),
            middle.reshape(-1, middle.shape[-1]),
            factors.up.t(),
            alpha=factors.scaling,
        )
        return flat.view(base.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Add the factors' gradients to their views; return those of `x` and `base`."""
        h, x = ctx.saved_tensors
        factors: Factors = ctx.factors
        grouping: Grouping = ctx.grouping
        g_rows = g.reshape(*h.shape[:-1], g.shape[-1])
        u = grouping.times_transposed(g_rows, factors.up).mul_(factors.scaling)
        if factors.up_grad is not None:
            grouping.add_outer(factors.up_grad, g_rows, h * factors.scaling)
        if factors.down_grad is not None:
            grouping.add_outer(factors.down_grad, u, x)
        if factors.core is not None and factors.core_grad is not None:
            grouping.add_outer(factors.core_grad, u, h)
            u = grouping.times_transposed(u, factors.core)
        dx = grouping.times_transposed(u, factors.down) if ctx.needs_input_grad[0] else None
        return dx, (g if ctx.needs_input_grad[1] else None), None, None, None
