"""A feed-forward block as a mixture of experts: one shared part and E routed experts.

y(x) = shared(x) + Σ_k w_k(x) · expert_{i_k(x)}(x), with dropless token-choice top-k routing: a
token picks its experts by its own activation alone. There is no capacity limit, no expert choice
and no statistic over the batch, so an utterance's output never depends on its neighbours: the
condition for per-subject gradients to mean anything (Lepikhin et al. 2020 and Fedus et al. 2021
route with capacity limits; Gale et al. 2022, MegaBlocks, for the dropless form used here).

Experts are stacked in one tensor per projection. Tokens are sorted by expert once, and each
projection is one grouped matrix product over the sorted tokens.

Shape suffixes: N tokens (batch x time), S = N·K expert-sorted slots, K experts per token,
E experts, D model width, F expert hidden width, B batch, T time.
"""

# Fields carry shape suffixes like every other tensor name.
# ruff: noqa: N815
from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

Kernel = Literal["auto", "grouped", "loop"]
Weighting = Literal["mean", "sum"]
_GROUPED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_STRIDE_ALIGNMENT_BYTES = 16


@dataclass(frozen=True)
class Routing:
    """Which expert sees which token, with slots sorted by expert.

    Attributes:
        token_S: int64, index b·T + t of the token in each slot.
        expert_S: int64, expert of each slot, non-decreasing.
        offsets_E: int32, cumulative end of each expert's slots.
        weight_S: weight of each slot's output in its token's sum.
        slot_NK: int64, where token n's k-th choice lies among the slots.
    """

    token_S: Tensor
    expert_S: Tensor
    offsets_E: Tensor
    weight_S: Tensor
    slot_NK: Tensor


ExpertDelta = Callable[[Tensor, Routing], Tensor]


def route(expert_NK: Tensor, weight_NK: Tensor, experts: int) -> Routing:
    """Sort token choices by expert; ties keep token order, so the result is deterministic."""
    tokens, top_k = expert_NK.shape
    flat_S = expert_NK.reshape(-1)
    order_S = torch.argsort(flat_S, stable=True)
    slot_S = torch.empty_like(order_S)
    slot_S[order_S] = torch.arange(flat_S.numel(), device=flat_S.device)
    counts_E = torch.bincount(flat_S, minlength=experts)
    return Routing(
        token_S=order_S // top_k,
        expert_S=flat_S[order_S],
        offsets_E=counts_E.cumsum(0).to(torch.int32),
        weight_S=weight_NK.reshape(-1)[order_S],
        slot_NK=slot_S.view(tokens, top_k),
    )


def grouped_linear(
    x_SI: Tensor, weight_EOI: Tensor, offsets_E: Tensor, kernel: Kernel = "auto"
) -> Tensor:
    """Each expert's rows of x times that expert's weight: [S, I] → [S, O].

    "auto" takes torch's grouped matrix product where it exists for the dtype and its strides are
    aligned to 16 bytes, and one product per expert otherwise (float64, odd widths). Both are exact
    in autograd, for the input and for the weight.
    """
    if kernel == "grouped" or (kernel == "auto" and _can_group(x_SI, weight_EOI)):
        grouped_SO: Tensor = functional.grouped_mm(
            x_SI, weight_EOI.transpose(-2, -1), offs=offsets_E
        )
        return grouped_SO
    ends = offsets_E.tolist()
    pieces = [
        x_SI[start:end] @ weight_EOI[expert].t()
        for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False))
    ]
    return torch.cat(pieces)


def _can_group(x_SI: Tensor, weight_EOI: Tensor) -> bool:
    aligned = all(
        width * weight_EOI.element_size() % _STRIDE_ALIGNMENT_BYTES == 0
        for width in weight_EOI.shape[1:]
    )
    return aligned and x_SI.dtype in _GROUPED_DTYPES and hasattr(functional, "grouped_mm")


class StackedExperts(nn.Module):
    """E experts of shape D → F → D, stacked; the output bias belongs to the shared part.

    Parameters: up_proj [E, F, D], up_proj_bias [E, F], down_proj [E, D, F].

    `deltas` is the extension point for adapters that are not in the parameters, such as the
    per-subject gradient engine: under a parameter's name, a function that receives the sorted
    input of that projection [S, in] and the routing, and returns what to add to its output.
    """

    def __init__(
        self, experts: int, width: int, hidden: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.empty(experts, hidden, width))
        self.up_proj_bias = nn.Parameter(torch.empty(experts, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, width, hidden))
        self.activation = activation
        self.kernel: Kernel = "auto"
        self.deltas: dict[str, ExpertDelta] = {}

    def forward(self, x_ND: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's experts: [N, D] → [N, D]."""
        x_SD = x_ND.index_select(0, routing.token_S)
        hidden_SF = self._project("up_proj", self.up_proj, x_SD, routing)
        hidden_SF = hidden_SF + self.up_proj_bias.index_select(0, routing.expert_S)
        hidden_SF = self.activation(hidden_SF)
        y_SD = self._project("down_proj", self.down_proj, hidden_SF, routing)
        y_SD = y_SD * routing.weight_S[:, None]
        tokens, top_k = routing.slot_NK.shape
        chosen_ND = y_SD.index_select(0, routing.slot_NK.reshape(-1))
        return chosen_ND.view(tokens, top_k, -1).sum(1)

    def _project(self, name: str, weight_EOI: Tensor, x_SI: Tensor, routing: Routing) -> Tensor:
        y_SO = grouped_linear(x_SI, weight_EOI, routing.offsets_E, self.kernel)
        delta = self.deltas.get(name)
        return y_SO if delta is None else y_SO + delta(x_SI, routing)


class MixtureFeedForward(nn.Module):
    """Feed-forward block x_BTD → y_BTD: shared part plus routed experts.

    `weighting` says how a token's experts add up. "mean": the chosen probabilities renormalised to
    sum to one, so that experts copied from a dense block reproduce it. "sum": weight 1 each, so
    that experts that share out a dense block's neurons make it up.

    A weight that is always 1 ("sum", or "mean" at top-1) is p / stop_gradient(p) where the router
    trains: exactly 1 in value, with a gradient for the router. With a frozen router it is the
    constant 1, which is that function's true derivative.

    A shared part of no hidden units is the output bias alone.
    """

    def __init__(
        self,
        *,
        width: int,
        shared_hidden: int,
        expert_hidden: int,
        experts: int,
        top_k: int,
        activation: Callable[[Tensor], Tensor],
        weighting: Weighting = "mean",
    ) -> None:
        super().__init__()
        self.top_k = top_k
        self.weighting: Weighting = weighting
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors", UserWarning)
            self.shared_up = nn.Linear(width, shared_hidden)
            self.shared_down = nn.Linear(shared_hidden, width)
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = StackedExperts(experts, width, expert_hidden, activation)
        self.activation = activation

    def choose(self, x_ND: Tensor) -> Routing:
        """The routing of each token, a function of that token's activation alone."""
        p_NE = self.router(x_ND).float().softmax(-1)
        p_NK, expert_NK = p_NE.topk(self.top_k, dim=-1)
        if self.weighting == "mean" and self.top_k > 1:
            weight_NK = p_NK / p_NK.sum(-1, keepdim=True)
        elif self.router.weight.requires_grad:
            weight_NK = p_NK / p_NK.detach()
        else:
            weight_NK = torch.ones_like(p_NK)
        return route(expert_NK, weight_NK.to(x_ND.dtype), p_NE.shape[-1])

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the block to every position."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        shared_ND = self.shared_down(self.activation(self.shared_up(x_ND)))
        routed_ND = self.experts(x_ND, self.choose(x_ND))
        y_ND: Tensor = shared_ND + routed_ND
        return y_ND.view_as(x_BTD)
