"""Fit a split model's encoder to its dense teacher, layer by layer, in closed form.

A split made from weights alone (`model_core.split`) knows neither the data nor that the other
experts are gone. Two ridge regressions a block, on the activations of some minutes of speech, put
that right in one pass through the encoder, without a gradient:

* the router's rows become the regression of log(contribution) on the block's input, where an
  expert's contribution is the squared distance of its output from its own mean: the top-k then
  are the experts that are predicted to matter most (Zhang et al. 2022 train a network for this);
* the down projections and the output bias become the regression of the dense block's output on the
  hidden units that run, pulled towards the released weights: what runs makes up for what does not.

Each layer is fitted on what the fitted layers before it put out, so errors are corrected and not
piled up. The target is the dense block on that very input.

Shape suffixes: N positions, D width, E experts, H units of one expert, F hidden units of the shared
part and all experts in this order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from model_core.errors import WeightsError
from model_core.experts import MixtureFeedForward
from model_core.features import encoder_stem

_FLOOR = 1e-12


@dataclass(frozen=True)
class FitConfig:
    """How strongly a fit is pulled towards the weights that it starts from.

    Attributes:
        ridge: of the down projections, in mean squared activations of a hidden unit.
        router_ridge: of the router, in mean squared values of the input.
    """

    ridge: float = 0.03
    router_ridge: float = 0.01

    def __post_init__(self) -> None:
        """Check ranges. Raises WeightsError."""
        if self.ridge <= 0 or self.router_ridge <= 0:
            raise WeightsError(
                f"ridges {self.ridge} and {self.router_ridge} leave a fit undetermined",
                remedy="give positive numbers",
            )


@dataclass(frozen=True)
class LayerFit:
    """Squared error of one block's output ÷ variance of the dense output, before and after."""

    before: float
    after: float


@torch.no_grad()
def fit_encoder(
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    mels: Sequence[Tensor],
    config: FitConfig | None = None,
) -> list[LayerFit]:
    """Fit every mixture of the student's encoder, in place; one report a layer.

    `mels` are the spectrograms of windows, [M, T] each, of any lengths. The student must be an
    upcycled copy of the teacher, whose attention is run in its stead. About 3·N·D·4 bytes of
    memory. Raises WeightsError for a student that is not a mixture, or without any window.
    """
    config = config or FitConfig()
    encoder = teacher.model.encoder
    if not mels:
        raise WeightsError("no speech to fit to", remedy="give recordings")
    streams = [encoder_stem(encoder, mel_MT[None]) for mel_MT in mels]
    fits = []
    for dense, split in zip(encoder.layers, student.model.encoder.layers, strict=True):
        mixture = split.fc1
        if not isinstance(mixture, MixtureFeedForward):
            raise WeightsError("the student is dense", remedy="upcycle it with the variant split")
        residuals = [_attend(dense, stream_1SD) for stream_1SD in streams]
        x_ND = torch.cat([dense.final_layer_norm(residual)[0] for residual in residuals])
        y_ND = dense.fc2(dense.activation_fn(dense.fc1(x_ND)))
        fit, out_ND = _fit(mixture, x_ND, y_ND, config)
        fits.append(fit)
        pieces = torch.split(out_ND, [residual.shape[1] for residual in residuals])
        streams = [residual + piece for residual, piece in zip(residuals, pieces, strict=True)]
    return fits


def _attend(layer: nn.Module, stream_1SD: Tensor) -> Tensor:
    """The layer's stream after self-attention, before its feed-forward block."""
    attended = layer.self_attn(layer.self_attn_layer_norm(stream_1SD))[0]  # type: ignore[operator]
    return stream_1SD + attended  # type: ignore[no-any-return]


def _fit(
    mixture: MixtureFeedForward, x_ND: Tensor, y_ND: Tensor, config: FitConfig
) -> tuple[LayerFit, Tensor]:
    variance = y_ND.var(dim=0, correction=0).sum().clamp(min=_FLOOR)

    def error(out_ND: Tensor) -> float:
        return float((out_ND - y_ND).square().sum(1).mean() / variance)

    before = error(mixture(x_ND[None])[0])
    mixture.router.weight.copy_(_router(mixture, x_ND, config.router_ridge).half())
    hidden_NF = _running_units(mixture, x_ND)
    _fit_down(mixture, hidden_NF, y_ND, config.ridge)
    out_ND = mixture(x_ND[None])[0]
    return LayerFit(before, error(out_ND)), out_ND


def _router(mixture: MixtureFeedForward, x_ND: Tensor, ridge: float) -> Tensor:
    experts = mixture.experts
    energies = []
    for up_HD, bias_H, down_DH in zip(
        experts.up_proj, experts.up_proj_bias, experts.down_proj, strict=True
    ):
        out_ND = mixture.activation(x_ND @ up_HD.t() + bias_H) @ down_DH.t()
        energies.append((out_ND - out_ND.mean(0)).square().sum(1))
    wanted_NE = torch.stack(energies, dim=1).clamp(min=_FLOOR).log()
    # A constant that is the same for every expert moves no choice, so it need not be fitted.
    wanted_NE = wanted_NE - wanted_NE.mean()
    return _ridge(x_ND, wanted_NE, ridge).t()


def _running_units(mixture: MixtureFeedForward, x_ND: Tensor) -> Tensor:
    """Activations of the shared units and of all experts', zero where a position does not run."""
    experts = mixture.experts
    shared_NF = mixture.activation(mixture.shared_up(x_ND))
    hidden_NEH = mixture.activation(
        torch.einsum("nd,ehd->neh", x_ND, experts.up_proj) + experts.up_proj_bias
    )
    routing = mixture.choose(x_ND)
    runs_NE = hidden_NEH.new_zeros(hidden_NEH.shape[:2])
    runs_NE[routing.token_S, routing.expert_S] = 1.0
    return torch.cat([shared_NF, (hidden_NEH * runs_NE[..., None]).flatten(1)], dim=1)


def _fit_down(mixture: MixtureFeedForward, hidden_NF: Tensor, y_ND: Tensor, ridge: float) -> None:
    experts = mixture.experts
    shared = mixture.shared_down.in_features
    routed_FD = experts.down_proj.transpose(1, 2).reshape(-1, y_ND.shape[1])
    down_FD = torch.cat([mixture.shared_down.weight.t(), routed_FD])
    missing_ND = y_ND - hidden_NF @ down_FD
    mean_F, mean_D = hidden_NF.mean(0), missing_ND.mean(0)
    change_FD = _ridge(hidden_NF - mean_F, missing_ND - mean_D, ridge)
    down_FD = (down_FD + change_FD).half().float()  # exact in the half precision it is stored in
    mixture.shared_down.weight.copy_(down_FD[:shared].t())
    mixture.shared_down.bias.copy_((mean_D - mean_F @ change_FD).half())
    by_expert = down_FD[shared:].view(*experts.up_proj.shape)
    experts.down_proj.copy_(by_expert.transpose(1, 2))


def _ridge(x_NF: Tensor, y_NO: Tensor, ridge: float) -> Tensor:
    """W minimising ‖xW − y‖² + ridge·mean(x²)·N·‖W‖², in float64."""
    gram_FF = (x_NF.t() @ x_NF).double()
    gram_FF.diagonal().add_(ridge * gram_FF.diagonal().mean().clamp(min=_FLOOR))
    solved_FO: Tensor = torch.linalg.solve(gram_FF, (x_NF.t() @ y_NO).double())
    return solved_FO.to(x_NF.dtype)
