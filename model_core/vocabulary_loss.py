"""Cross-entropy against a frozen vocabulary, without holding the logits of a whole batch.

Half of a decoder's training step is its vocabulary: 50,000 logits a target, their softmax, and both
again on the way back. As the projection is frozen, the loss's gradient with respect to the hidden
state, (softmax(W h) - onehot) W, is known as soon as the logits are. So it is taken at once, a few
targets at a time in memory that stays in cache, and backward only scales it.

Shape suffixes: N targets, D width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_TARGETS_AT_ONCE = 64


class FrozenVocabularyLoss(torch.autograd.Function):
    """Loss of each target: hidden [N, D], weight [V, D], target ids [N] -> [N].

    The weight gets no gradient. The products are taken in autocast's precision where that is on;
    softmax, losses and the result keep the hidden state's own.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, target_N: Tensor) -> Tensor:
        """Return the losses; the gradient is computed along."""
        device = hidden_ND.device.type
        dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else hidden_ND.dtype
        )
        weight_VD = weight_VD.to(dtype)
        losses, gradients = [], []
        with torch.autocast(device, enabled=False):
            for h_ND, t_N in zip(
                torch.split(hidden_ND, _TARGETS_AT_ONCE),
                torch.split(target_N, _TARGETS_AT_ONCE),
                strict=True,
            ):
                p_NV = (h_ND.to(dtype) @ weight_VD.t()).to(hidden_ND.dtype)
                p_NV -= p_NV.amax(1, keepdim=True)
                at_target_N1 = p_NV.gather(1, t_N[:, None])
                total_N1 = p_NV.exp_().sum(1, keepdim=True)
                losses.append((total_N1.log() - at_target_N1)[:, 0])
                p_NV /= total_N1
                p_NV.scatter_add_(1, t_N[:, None], p_NV.new_full((len(t_N), 1), -1.0))
                gradients.append((p_NV.to(dtype) @ weight_VD).to(hidden_ND.dtype))
        ctx.save_for_backward(torch.cat([*gradients, hidden_ND[:0]]))
        return torch.cat([*losses, hidden_ND[:0, 0]])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g_N: Tensor) -> tuple[Tensor, None, None]:
        """Scale each target's gradient by its loss's."""
        (gradient_ND,) = ctx.saved_tensors
        return gradient_ND * g_N[:, None], None, None
