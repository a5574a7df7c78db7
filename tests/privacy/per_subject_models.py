"""A small speech-shaped model with adapters on linear layers and stacked experts, and its oracle.

Shapes: B rows, T tokens, N = B·T tokens in all, S expert-sorted slots, E experts, k experts per
token, U subjects, D trained numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from privacy.per_subject.packing import trained

WIDTH, HIDDEN, RANK, TOKENS = 12, 20, 3, 5


@dataclasses.dataclass(frozen=True)
class SortedRouting:
    token_S: Tensor  # noqa: N815 - shape suffix
    expert_S: Tensor  # noqa: N815
    offsets_E: Tensor  # noqa: N815


class Experts(nn.Module):
    """Stacked experts with the deltas protocol, by gathering: no product is shared with ours."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(experts, HIDDEN, WIDTH) * 0.3)
        self.down_proj = nn.Parameter(torch.randn(experts, WIDTH, HIDDEN) * 0.3)
        self.deltas: dict[str, Callable[[Tensor, Any], Tensor]] = {}

    def forward(self, x_Sw: Tensor, routing: SortedRouting) -> Tensor:
        return self._project(
            "down_proj", functional.gelu(self._project("up_proj", x_Sw, routing)), routing
        )

    def _project(self, name: str, x: Tensor, routing: SortedRouting) -> Tensor:
        weight_S = getattr(self, name)[routing.expert_S]
        out = torch.einsum("soi,si->so", weight_S, x)
        return out + self.deltas[name](x, routing) if name in self.deltas else out


class Mixture(nn.Module):
    """Dropless token-choice top-k mixture over flattened tokens with a frozen router."""

    def __init__(self, experts: int, top_k: int, stable: bool) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, experts, bias=False)
        self.experts = Experts(experts)
        self.top_k, self.stable = top_k, stable

    def forward(self, x_BTw: Tensor) -> Tensor:
        x_Nw = x_BTw.reshape(-1, WIDTH)
        weight_Nk, expert_Nk = self.router(x_Nw).softmax(-1).topk(self.top_k, -1)
        expert_K = expert_Nk.reshape(-1)
        if self.stable:
            order_S = torch.argsort(expert_K, stable=True)
        else:  # within an expert, last token first
            order_S = (len(expert_K) - 1) - torch.argsort(expert_K.flip(0), stable=True)
        counts_E = torch.bincount(expert_K, minlength=self.router.out_features)
        routing = SortedRouting(
            order_S // self.top_k, expert_K[order_S], counts_E.cumsum(0).to(torch.int32)
        )
        y_Sw = self.experts(x_Nw[routing.token_S], routing)
        y_Sw = y_Sw * weight_Nk.reshape(-1)[order_S, None]
        return torch.zeros_like(x_Nw).index_add(0, routing.token_S, y_Sw).view_as(x_BTw)


class SmallSpeech(nn.Module):
    """Linear, attention over a row's tokens, mixture, linear; one loss per row."""

    def __init__(self, experts: int = 4, top_k: int = 1, stable: bool = True) -> None:
        super().__init__()
        self.inp = nn.Linear(WIDTH, WIDTH)
        self.query = nn.Linear(WIDTH, WIDTH)
        self.mixture = Mixture(experts, top_k, stable)
        self.out = nn.Linear(WIDTH, 7)
        self.requires_grad_(False)

    def forward(self, x_BTw: Tensor) -> Tensor:
        x = torch.tanh(self.inp(x_BTw))
        x = x + functional.scaled_dot_product_attention(self.query(x), x, x)
        return self.out(x + self.mixture(functional.layer_norm(x, (WIDTH,))))

    def losses(self, x_BTw: Tensor, target_BT: Tensor) -> Tensor:
        logits = self(x_BTw).transpose(1, 2)
        return functional.cross_entropy(logits, target_BT, reduction="none").mean(1)


@dataclasses.dataclass
class Layer:
    name: str
    module: nn.Module
    down: Tensor
    up: Tensor
    core: Tensor | None
    scaling: float = 1.7
    kind: str = "linear"
    parameter: str | None = None


def adapters_on(model: SmallSpeech, kind: str, rank: int = RANK) -> list[Layer]:
    """Random adapters, no factor zero, on three linear layers and both stacked parameters."""

    def factors(lead: tuple[int, ...], out: int, inp: int) -> tuple[Tensor, Tensor, Tensor | None]:
        dtype = model.inp.weight.dtype
        each = () if kind == "shared-core" else lead  # one core for a stack's experts, or one each
        core = None if kind == "lora" else torch.randn(*each, rank, rank, dtype=dtype)
        return (
            torch.randn(*lead, rank, inp, dtype=dtype),
            torch.randn(*lead, out, rank, dtype=dtype) * 0.3,
            core,
        )

    layers = [
        Layer(name, module, *factors((), module.out_features, module.in_features))
        for name, module in [("inp", model.inp), ("query", model.query), ("out", model.out)]
    ]
    experts = model.mixture.experts
    for parameter in ("up_proj", "down_proj"):
        lead, out, inp = getattr(experts, parameter).shape
        layer = Layer(f"experts.{parameter}", experts, *factors((lead,), out, inp))
        layers.append(dataclasses.replace(layer, kind="experts", parameter=parameter))
    return layers


@contextlib.contextmanager
def plain_adapters(layers: list[Layer]) -> Iterator[list[Tensor]]:
    """The same adapters as ordinary autograd sees them; yields the trained leaves in order."""
    leaves, handles = [], []
    for layer in layers:
        down, up = layer.down.detach().clone(), layer.up.detach().clone()
        core = None if layer.core is None else layer.core.detach().clone()
        mine = [down, up] if core is None else [core]
        leaves += [leaf.requires_grad_() for leaf in mine]

        def delta(x, expert_S=None, down=down, up=up, core=core, scaling=layer.scaling):
            product = up @ down if core is None else up @ core @ down
            if expert_S is None:
                return scaling * x @ product.transpose(-1, -2)
            return scaling * torch.einsum("soi,si->so", product[expert_S], x)

        if layer.kind == "linear":
            handles.append(
                layer.module.register_forward_hook(
                    lambda _m, inputs, out, delta=delta: out + delta(inputs[0])
                )
            )
        else:
            layer.module.deltas[layer.parameter] = lambda x, r, delta=delta: delta(x, r.expert_S)
    try:
        yield leaves
    finally:
        for handle in handles:
            handle.remove()
        for layer in layers:
            if layer.kind == "experts":
                layer.module.deltas.pop(layer.parameter)


def one_subject_at_a_time(
    layers: list[Layer],
    losses: Callable[[Tensor], Tensor],
    row_subject_B: Tensor,
    subjects: int,
) -> Tensor:
    """The oracle, [U, D]: `losses(rows)` is run on each subject's rows alone."""
    size = sum(tensor.numel() for layer in layers for _, tensor in trained(layer))
    gradients_UD = layers[0].down.new_zeros(subjects, size)
    with plain_adapters(layers) as leaves:
        for subject in row_subject_B.unique().tolist():
            rows = (row_subject_B == subject).nonzero()[:, 0]
            total = losses(rows).sum()
            parts = torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)
            gradients_UD[subject] = torch.cat([part.flatten() for part in parts])
    return gradients_UD


def relative_error(ours: Tensor, oracle: Tensor) -> float:
    """Largest error over the largest entry, of the worst subject."""
    error_U = (ours - oracle).abs().amax(-1)
    scale_U = oracle.abs().amax(-1).clamp(min=torch.finfo(oracle.dtype).tiny)
    return float((error_U / scale_U).max())


class Dense(nn.Module):
    """Linear layers only, so that Opacus knows every one of them."""

    def __init__(self):
        super().__init__()
        self.q_proj = nn.Linear(WIDTH, WIDTH)
        self.up_proj = nn.Linear(WIDTH, 20)
        self.down_proj = nn.Linear(20, 7)

    def forward(self, x):
        x = x + functional.scaled_dot_product_attention(self.q_proj(x), x, x)
        return self.down_proj(functional.gelu(self.up_proj(x)))


TARGETS = ["q_proj", "up_proj", "down_proj"]


def peft_model(base=None, **config):
    torch.manual_seed(0)
    config = {"r": 4, "lora_alpha": 8, "target_modules": TARGETS} | config
    model = get_peft_model(base or Dense(), LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return model
