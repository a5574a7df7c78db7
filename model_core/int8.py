"""INT8 products in torch: per-channel weights, each row of the input quantised by itself.

torch's dynamic quantisation (`quantize_dynamic`) takes one scale for the whole input, so a row's
result depends on its neighbours, and it leaves stacked experts in float32. Here every row has its
own scale, so a transcript does not depend on its batch, and experts are quantised one by one. The
product is `torch._int_mm` (int8 x int8 to int32), which is oneDNN's and uses VNNI where there is.

y = s_x · s_w · (q_x q_w) + b with q = round(v / s), s = max|v| / 127 (symmetric; Dettmers et al.
2022, LLM.int8(), section 2.1, vector-wise quantisation).

Shape suffixes: N rows, I inputs, O outputs, E experts, F expert hidden width, D width,
V vocabulary, C candidates.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from model_core.experts import MixtureFeedForward
from model_core.twin import twin

_LARGEST = 127.0
_SMALLEST_SCALE = 1e-12
_CANDIDATES = 8


def quantise_rows(x_NI: Tensor) -> tuple[Tensor, Tensor]:
    """Each row to int8 by its own largest magnitude: q [N, I] and scale [N, 1], x ≈ q · scale."""
    scale_N1 = x_NI.abs().amax(-1, keepdim=True).clamp_(min=_SMALLEST_SCALE) / _LARGEST
    return (x_NI / scale_N1).round_().to(torch.int8), scale_N1


class Int8Weight:
    """A matrix [O, I] in int8 with a scale per output."""

    def __init__(self, weight_OI: Tensor) -> None:
        self._q_OI, scale_O1 = quantise_rows(weight_OI.float())
        self._scale_O = scale_O1[:, 0]

    @property
    def size_bytes(self) -> int:
        """Bytes held."""
        return self._q_OI.nbytes + self._scale_O.nbytes

    def times(self, q_NI: Tensor, scale_N1: Tensor) -> Tensor:
        """Product with quantised rows: [N, O] float32."""
        y_NO: Tensor = torch._int_mm(q_NI, self._q_OI.t()).float()
        return y_NO.mul_(self._scale_O).mul_(scale_N1)


class Int8Linear(nn.Module):
    """A linear layer in int8 for inference: x [..., I] → [..., O] float32."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self._weight, self._bias_O = Int8Weight(weight_OI), bias_O

    def forward(self, x: Tensor) -> Tensor:
        """Quantise each row of x by itself and multiply."""
        y_NO = self._weight.times(*quantise_rows(x.reshape(-1, x.shape[-1])))
        if self._bias_O is not None:
            y_NO += self._bias_O
        return y_NO.view(*x.shape[:-1], -1)


class Int8Mixture(nn.Module):
    """A mixture of experts in int8, every expert quantised by itself; the router stays float32."""

    def __init__(self, mixture: MixtureFeedForward) -> None:
        super().__init__()
        experts = mixture.experts
        self._activation = mixture.activation
        self._gate = twin(mixture)
        self._gate.shared_up = self._gate.shared_down = self._gate.experts = nn.Identity()  # type: ignore[assignment]
        self._shared_up: nn.Module = mixture.shared_up
        self._shared_down: nn.Module = mixture.shared_down
        if mixture.shared_up.out_features:
            self._shared_up = _quantised(mixture.shared_up)
            self._shared_down = _quantised(mixture.shared_down)
        self._up = nn.ModuleList(
            Int8Linear(up_FD, bias_F)
            for up_FD, bias_F in zip(experts.up_proj, experts.up_proj_bias, strict=True)
        )
        self._down = nn.ModuleList(Int8Linear(down_DF, None) for down_DF in experts.down_proj)

    def forward(self, x: Tensor) -> Tensor:
        """Shared part plus each token's experts: [..., D] → [..., D]."""
        x_ND = x.reshape(-1, x.shape[-1])
        activation = self._activation
        y_ND: Tensor = self._shared_down(activation(self._shared_up(x_ND)))
        routing = self._gate.choose(x_ND)
        start = 0
        for expert, end in enumerate(routing.offsets_E.tolist()):
            if end > start:
                token_S = routing.token_S[start:end]
                hidden_SF = activation(self._up[expert](x_ND.index_select(0, token_S)))
                part_SD = self._down[expert](hidden_SF) * routing.weight_S[start:end, None]
                y_ND.index_add_(0, token_S, part_SD)
            start = end
        return y_ND.view_as(x)


class Vocabulary:
    """Logits of a frozen vocabulary: int8 screens all words, float32 decides among the best.

    The int8 matrix is a quarter of the float32 one, which bounds the time of a step with few rows.
    The logits of the eight best candidates are exact; the others, which enter the sum of the
    softmax only, are within quantisation error.
    """

    def __init__(self, tokens_VD: Tensor) -> None:
        self._tokens_VD = tokens_VD
        self._int8 = Int8Weight(tokens_VD)
        self.size = len(tokens_VD)

    def logits(self, hidden_ND: Tensor, bias_V: Tensor | None = None) -> Tensor:
        """[N, D] → [N, V], with `bias_V` (0, or -inf for what is banned) added."""
        logits_NV = self._int8.times(*quantise_rows(hidden_ND))
        if bias_V is not None:
            logits_NV += bias_V
        best_NC = logits_NV.topk(min(_CANDIDATES, logits_NV.shape[1]), sorted=False).indices
        exact_NC = torch.einsum("ncd,nd->nc", self._tokens_VD[best_NC], hidden_ND)
        if bias_V is not None:
            exact_NC += bias_V[best_NC]
        return logits_NV.scatter_(1, best_NC, exact_NC)


def int8_encoder(encoder: WhisperEncoder) -> WhisperEncoder:
    """The encoder with every linear layer and expert in int8; convolutions and norms stay.

    The given encoder is left as it is; what is not quantised is shared with it.
    """
    copy = cast(WhisperEncoder, twin(encoder))
    for layer in copy.layers:
        if isinstance(layer.fc1, MixtureFeedForward):
            layer.fc1 = Int8Mixture(layer.fc1)
        _quantise_linears(layer)
    return copy


def _quantised(linear: nn.Linear) -> Int8Linear:
    return Int8Linear(linear.weight, linear.bias)


def _quantise_linears(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, _quantised(child))
        elif not isinstance(child, Int8Mixture):
            _quantise_linears(child)
