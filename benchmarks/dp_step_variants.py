"""The steps that `benchmarks.dp_step` times, each a function from a setting to a callable.

Shapes: B rows of the lot (one per subject), T tokens of a row, W width, S expert-sorted slots,
E experts, D trained numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional

from model_core.experts import MixtureFeedForward, grouped_linear
from privacy.mechanism import clip_and_sum
from privacy.per_subject import PerSubjectEngine, layers_of
from privacy.random_source import SystemRandomSource

# whisper-tiny's width and feed-forward, half shared and half routed to four experts.
WIDTH, HIDDEN, HEADS, BLOCKS, EXPERTS, TOKENS, CLASSES = 384, 768, 6, 2, 4, 64, 64
CLIPPING_NORM, NOISE_MULTIPLIER, SCALING = 1.0, 1.0, 2.0
ATTENTION = ("q_proj", "k_proj", "v_proj", "out_proj")
DENSE_FEED_FORWARD = ("up_proj", "down_proj")
STACKED = ("up_proj", "down_proj")


@dataclasses.dataclass(frozen=True)
class Setting:
    """One configuration: adapter kind and rank, and subjects (one row each) in the lot."""

    kind: str
    rank: int
    lot: int


@dataclasses.dataclass(frozen=True)
class Variant:
    """A named way to do a step and the adapter kinds that it can do."""

    make: Callable[[Setting], Callable[[], Tensor]]
    kinds: tuple[str, ...] = ("lora",)

    def __call__(self, setting: Setting) -> Callable[[], Tensor]:
        torch.manual_seed(0)
        return self.make(setting)


@dataclasses.dataclass(frozen=True)
class BenchLayer:
    """An adapted weight of the benchmark's model, as the engine asks for it."""

    name: str
    module: nn.Module
    kind: Literal["linear", "experts"]
    parameter: str | None
    down: Tensor
    up: Tensor
    core: Tensor | None
    scaling: float = SCALING


class Block(nn.Module):
    """Pre-norm transformer block with a mixture, or a dense block of the same active width."""

    def __init__(self, mixture: bool) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (
            nn.Linear(WIDTH, WIDTH) for _ in ATTENTION
        )
        self.mixture: nn.Module | None = None
        if mixture:
            self.mixture = MixtureFeedForward(
                width=WIDTH,
                shared_hidden=HIDDEN,
                expert_hidden=HIDDEN,
                experts=EXPERTS,
                top_k=1,
                activation=functional.gelu,
            )
            for parameter in self.mixture.experts.parameters():
                nn.init.normal_(parameter, std=0.02)
        else:
            self.up_proj, self.down_proj = (
                nn.Linear(WIDTH, 2 * HIDDEN),
                nn.Linear(2 * HIDDEN, WIDTH),
            )

    def forward(self, x_BTW: Tensor) -> Tensor:
        normed = functional.layer_norm(x_BTW, (WIDTH,))
        q, k, v = (
            project(normed).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x_BTW = x_BTW + self.out_proj(attended)
        normed = functional.layer_norm(x_BTW, (WIDTH,))
        if self.mixture is not None:
            return x_BTW + self.mixture(normed)
        return x_BTW + self.down_proj(functional.gelu(self.up_proj(normed)))


class Speech(nn.Module):
    """Blocks between a projection and a classifier of tokens; frozen."""

    def __init__(self, mixture: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(mixture) for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.requires_grad_(False)

    def forward(self, x_BTW: Tensor) -> Tensor:
        for block in self.blocks:
            x_BTW = block(x_BTW)
        return self.head(x_BTW)


def row_losses(model: nn.Module, x_BTW: Tensor, target_BT: Tensor) -> Tensor:
    """Mean cross-entropy of each row, [B]."""
    logits = model(x_BTW).transpose(1, 2)
    return functional.cross_entropy(logits, target_BT, reduction="none").mean(1)


def make_loss(model: nn.Module, lot: int) -> Callable[[], Tensor]:
    """Losses of a fixed random lot."""
    x_BTW, target_BT = torch.randn(lot, TOKENS, WIDTH), torch.randint(CLASSES, (lot, TOKENS))
    return functools.partial(row_losses, model, x_BTW, target_BT)


def bench_layers(model: Speech, setting: Setting) -> list[BenchLayer]:
    """Adapters on attention and on both stacked parameters of every block."""

    def layer(name: str, module: nn.Module, weight: Tensor, parameter: str | None) -> BenchLayer:
        *lead, out, inp = weight.shape
        r = setting.rank
        core = torch.randn(*lead, r, r) if setting.kind == "core" else None
        down, up = torch.randn(*lead, r, inp) * inp**-0.5, torch.randn(*lead, out, r) * 0.02
        kind: Literal["linear", "experts"] = "linear" if parameter is None else "experts"
        return BenchLayer(name, module, kind, parameter, down, up, core)

    layers = []
    for index, block in enumerate(model.blocks):
        for name in ATTENTION:
            module = getattr(block, name)
            layers.append(layer(f"{index}.{name}", module, module.weight, None))
        experts = block.mixture.experts
        for name in STACKED:
            layers.append(layer(f"{index}.experts.{name}", experts, getattr(experts, name), name))
    return layers


def finish_private(gradients_UD: Tensor, source: SystemRandomSource) -> Tensor:
    """Clip, sum and noise: the rest of a DP step."""
    sum_D, _ = clip_and_sum(gradients_UD, CLIPPING_NORM)
    return sum_D + source.normal(len(sum_D)) * (NOISE_MULTIPLIER * CLIPPING_NORM)


def dp_on_mixture(setting: Setting) -> Callable[[], Tensor]:
    """Ours: the engine on attention and experts."""
    model = Speech(mixture=True)
    engine = PerSubjectEngine(bench_layers(model, setting))
    loss, row_subject_B = make_loss(model, setting.lot), torch.arange(setting.lot)
    source = SystemRandomSource()

    def step() -> Tensor:
        return finish_private(engine.gradients(loss, row_subject_B, setting.lot), source)

    return step


def plain_on_mixture(setting: Setting) -> Callable[[], Tensor]:
    """The same adapters by ordinary autograd: one batch gradient."""
    model = Speech(mixture=True)
    leaves: list[Tensor] = []
    for layer in bench_layers(model, setting):
        attach_plain(layer, leaves)
    return batch_gradient(make_loss(model, setting.lot), leaves)


def attach_plain(layer: BenchLayer, leaves: list[Tensor]) -> None:
    """Add the adapter to its module for good, its trained factors as autograd leaves."""
    factors = [layer.down] + ([] if layer.core is None else [layer.core]) + [layer.up]
    leaves += [f.requires_grad_() for f in ([layer.core] if layer.core is not None else factors)]
    if layer.kind == "linear":

        def hook(_module: nn.Module, inputs: tuple[Tensor], out: Tensor) -> Tensor:
            y = inputs[0]
            for factor in factors:
                y = functional.linear(y, factor)
            return out + y * layer.scaling

        layer.module.register_forward_hook(hook)
        return

    def delta(y: Tensor, routing: Any) -> Tensor:
        for factor in factors:
            y = grouped_linear(y, factor, routing.offsets_E)
        return y * layer.scaling

    layer.module.deltas[layer.parameter] = delta


def batch_gradient(loss: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], Tensor]:
    """A plain step: the gradient of the summed losses as one vector [D]."""

    def step() -> Tensor:
        parts = torch.autograd.grad(loss().sum(), leaves)
        return torch.cat([part.flatten() for part in parts])

    return step


def peft_model(model: Speech, setting: Setting, modules: tuple[str, ...], **config: Any) -> Any:
    """Stock peft LoRA; both factors non-zero."""
    config |= {"r": setting.rank, "lora_alpha": SCALING * setting.rank}
    adapted = get_peft_model(model, LoraConfig(target_modules=list(modules), **config))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
    return adapted


def trained(model: nn.Module) -> list[Tensor]:
    """Parameters that train."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def peft_on_mixture(setting: Setting) -> Callable[[], Tensor]:
    """peft's own layers, experts through target_parameters."""
    parameters = [f"experts.{name}" for name in STACKED]
    model = peft_model(Speech(mixture=True), setting, ATTENTION, target_parameters=parameters)
    return batch_gradient(make_loss(model, setting.lot), trained(model))


def plain_on_dense(setting: Setting) -> Callable[[], Tensor]:
    """peft's own linear layers."""
    model = peft_model(Speech(mixture=False), setting, ATTENTION + DENSE_FEED_FORWARD)
    return batch_gradient(make_loss(model, setting.lot), trained(model))


def dp_on_dense(setting: Setting) -> Callable[[], Tensor]:
    """Ours on the same peft model."""
    model = peft_model(Speech(mixture=False), setting, ATTENTION + DENSE_FEED_FORWARD)
    engine = PerSubjectEngine(layers_of(model))
    loss, row_subject_B = make_loss(model, setting.lot), torch.arange(setting.lot)
    source = SystemRandomSource()

    def step() -> Tensor:
        with model.disable_adapter():
            gradients_UD = engine.gradients(loss, row_subject_B, setting.lot)
        return finish_private(gradients_UD, source)

    return step


def opacus_hooks_on_dense(setting: Setting) -> Callable[[], Tensor]:
    """Opacus GradSampleModule with hooks on the same peft model."""
    from opacus.grad_sample.utils import prepare_module

    model = peft_model(Speech(mixture=False), setting, ATTENTION + DENSE_FEED_FORWARD)
    model = prepare_module(model, grad_sample_mode="hooks", loss_reduction="sum")
    loss, leaves, source = make_loss(model, setting.lot), trained(model), SystemRandomSource()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss().sum().backward()
        gradients_UD = torch.cat([leaf.grad_sample.flatten(1) for leaf in leaves], 1)
        return finish_private(gradients_UD, source)

    return step


def opacus_ghost_on_dense(setting: Setting) -> Callable[[], Tensor]:
    """Opacus fast gradient clipping with ghost norms: norms first, then a weighted backward."""
    from opacus.grad_sample.utils import prepare_module

    model = peft_model(Speech(mixture=False), setting, ATTENTION + DENSE_FEED_FORWARD)
    model = prepare_module(
        model,
        grad_sample_mode="ghost",
        loss_reduction="sum",
        max_grad_norm=CLIPPING_NORM,
        use_ghost_clipping=True,
    )
    loss, leaves, source = make_loss(model, setting.lot), trained(model), SystemRandomSource()

    def step() -> Tensor:
        model.zero_grad(set_to_none=True)
        loss_B = loss()
        model.enable_hooks()
        loss_B.sum().backward(retain_graph=True)
        weights_B = model.get_clipping_coef()
        model.zero_grad(set_to_none=True)
        model.disable_hooks()
        (weights_B * loss_B).sum().backward()
        sum_D = torch.cat([leaf.grad.flatten() for leaf in leaves])
        model.enable_hooks()
        return sum_D + source.normal(len(sum_D)) * (NOISE_MULTIPLIER * CLIPPING_NORM)

    return step


MIXTURE_VARIANTS = {
    "plain": Variant(plain_on_mixture, ("lora", "core")),
    "dp": Variant(dp_on_mixture, ("lora", "core")),
    "peft": Variant(peft_on_mixture),
}
DENSE_VARIANTS = {
    "plain": Variant(plain_on_dense),
    "dp": Variant(dp_on_dense),
    "opacus-hooks": Variant(opacus_hooks_on_dense),
    "opacus-ghost": Variant(opacus_ghost_on_dense),
}
