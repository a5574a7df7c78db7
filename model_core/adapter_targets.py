"""What an adapter adapts: its configuration, resolved to exact layers of a model.

Targets are regular expressions for the end of a module's or parameter's name, from a dot on:
`encoder_attn.q_proj`, `decoder.layers.[23].*q_proj`, `decoder.*experts.up_proj`. They are resolved
to exact names once, so that two parties with the same base and configuration train the same
tensors.

Shape letters: r rank, E experts, B batch, T time.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from model_core.errors import AdapterError
from model_core.experts import StackedExperts

AdapterKind = Literal["lora", "core"]


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter trains.

    Attributes:
        kind: "lora" (both factors) or "core" (an r x r matrix between frozen factors).
        rank: r.
        scaling: factor of the adapter's output.
        target_modules: linear layers, such as `encoder_attn.q_proj` or
            `decoder.layers.[23].encoder_attn.(q|v|out)_proj`.
        target_parameters: stacked expert parameters, such as `decoder.*experts.up_proj`.
        seed: of A's random start for kind "lora".
    """

    kind: AdapterKind
    rank: int
    scaling: float
    target_modules: tuple[str, ...]
    target_parameters: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Layer:
    """One adapted matrix, or stack of matrices, with the tensors that the gradient engine uses.

    Attributes:
        name: module name, with the parameter's name appended for experts.
        module: the frozen base module: a linear layer called with x [B, T, in], or experts.
        kind: "linear" or "experts".
        parameter: for experts, the stacked parameter's name.
        down: A, [r, in] or [E, r, in].
        up: B (or U for a core), [out, r] or [E, out, r].
        core: R, [r, r], shared by the experts of a stack; None for kind "lora".
        scaling: factor of the adapter's output.
    """

    name: str
    module: nn.Module
    kind: Literal["linear", "experts"]
    parameter: str | None
    down: Tensor
    up: Tensor
    core: Tensor | None
    scaling: float

    @property
    def trainable(self) -> tuple[tuple[str, Tensor], ...]:
        """Names and tensors that train, in packing order."""
        if self.core is not None:
            return ((f"{self.name}.core", self.core),)
        return ((f"{self.name}.down", self.down), (f"{self.name}.up", self.up))


@dataclass(frozen=True)
class Target:
    """One matrix or stack that an adapter adapts, before any adapter is attached."""

    name: str
    module_name: str
    parameter: str | None
    weight: Tensor  # [out, in] or [E, out, in]


def find_targets(model: nn.Module, config: AdapterConfig) -> list[Target]:
    """Resolve a configuration's targets, in the model's own order.

    Raises AdapterError (adapter-target) for a pattern that matches nothing, so that a misspelt
    target is never silently left out.
    """
    unused = {*config.target_modules, *config.target_parameters}
    targets: list[Target] = []
    for module_name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            hits = _hits(module_name, config.target_modules)
            if hits:
                targets.append(Target(module_name, module_name, None, module.weight))
                unused -= hits
        elif isinstance(module, StackedExperts):
            for parameter in ("up_proj", "down_proj"):
                name = f"{module_name}.{parameter}"
                hits = _hits(name, config.target_parameters)
                if hits:
                    weight = getattr(module, parameter)
                    targets.append(Target(name, module_name, parameter, weight))
                    unused -= hits
    if unused or not targets:
        raise AdapterError(
            f"no layer of the model matches the adapter targets {sorted(unused)}",
            remedy="name linear layers in target_modules and expert stacks in target_parameters",
            code="adapter-target",
        )
    return targets


def _hits(name: str, patterns: tuple[str, ...]) -> set[str]:
    try:
        return {p for p in patterns if re.fullmatch(rf"(?:.*\.)?(?:{p})", name)}
    except re.error as error:
        raise AdapterError(
            f"an adapter target is not a regular expression: {error}",
            remedy="name a layer, the end of its name, or a regular expression for it",
            code="adapter-target",
        ) from error


def adapter_keys(layers: Sequence[Layer]) -> set[str]:
    """The exact keys of a peft state dict with these layers.

    peft nests one wrapper per parameter of a module: the last wrapped parameter is outermost, and
    each earlier one lies one `base_layer` further in.
    """
    keys: set[str] = set()
    modules = [_module_name(layer) for layer in layers]
    for index, module in enumerate(modules):
        depth = modules[index + 1 :].count(module)
        stem = f"base_model.model.{module}{'.base_layer' * depth}"
        keys |= {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    return keys


def _module_name(layer: Layer) -> str:
    return layer.name if layer.parameter is None else layer.name.removesuffix(f".{layer.parameter}")
