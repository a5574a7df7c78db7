"""Adapter layers of a plain peft model, and what makes a model unfit for per-subject gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any, Literal

from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import AdapterLayer
from privacy.per_subject.packing import trained


@dataclasses.dataclass(frozen=True)
class PeftLinear:
    """A `peft` LoRA linear layer as the engine sees it; the factors are peft's own parameters."""

    name: str
    module: nn.Module
    down: Tensor
    up: Tensor
    scaling: float
    kind: Literal["linear", "experts"] = "linear"
    parameter: str | None = None
    core: Tensor | None = None


def layers_of(peft_model: PeftModel) -> list[PeftLinear]:
    """The LoRA linear layers of a peft model, in module order.

    Raises UnsupportedLayerError naming the first adapted layer that is not a plain LoRA linear
    layer with one active adapter and no dropout.
    """
    layers = [
        _linear(name, module)
        for name, module in peft_model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    if not layers:
        raise UnsupportedLayerError(
            "the model has no peft adapter layer", remedy="attach one with get_peft_model()"
        )
    return layers


def _linear(name: str, module: Any) -> PeftLinear:
    if not isinstance(module, LoraLinear) or not isinstance(module.get_base_layer(), nn.Linear):
        raise UnsupportedLayerError(
            f"{name} is adapted by {type(module).__name__}, which the engine does not know",
            remedy="adapt nn.Linear layers with LoRA, or pass the layer to the engine yourself",
        )
    if len(module.active_adapters) != 1:
        raise UnsupportedLayerError(
            f"{name} has {len(module.active_adapters)} active adapters",
            remedy="set exactly one with set_adapter()",
        )
    adapter = module.active_adapters[0]
    beyond_plain = {
        "a variant such as DoRA": adapter in module.lora_variant,
        "a bias of its own": module.lora_bias.get(adapter, False),
        "dropout": not isinstance(module.lora_dropout[adapter], nn.Identity),
        "a transposed weight": module.fan_in_fan_out,
    }
    found = [what for what, holds in beyond_plain.items() if holds]
    if found:
        raise UnsupportedLayerError(
            f"the LoRA of {name} has {', '.join(found)}",
            remedy="use LoraConfig(lora_dropout=0) without variants and biases",
        )
    return PeftLinear(
        name=name,
        module=module,
        down=module.lora_A[adapter].weight,
        up=module.lora_B[adapter].weight,
        scaling=float(module.scaling[adapter]),
    )


def refuse_unsupported(model: nn.Module, layers: Collection[AdapterLayer]) -> None:
    """Refuse a model in which per-subject clipping would not bound a subject's influence.

    What modules do not show (time-first inputs, rows mixed in code) `verify_rows` finds by a
    backward pass, and a routing that is not dropless is refused as it runs.

    Raises UnsupportedLayerError naming the module or parameter:
        batch norm, whose output mixes rows, even frozen, as train() would wake it;
        instance norm with running statistics, which remember rows;
        a router with a capacity limit, where one subject's tokens displace another's;
        a trainable parameter that none of `layers` trains.
    """
    for name, module in model.named_modules():
        remembers = isinstance(module, _InstanceNorm) and module.track_running_stats
        if isinstance(module, _BatchNorm) or remembers:
            raise UnsupportedLayerError(
                f"{name} ({type(module).__name__}) mixes the rows of a batch",
                remedy="replace it by nn.LayerNorm or nn.GroupNorm",
            )
        if getattr(module, "expert_capacity", None) is not None:
            raise UnsupportedLayerError(
                f"{name} ({type(module).__name__}) limits the capacity of its experts, so one "
                "subject's tokens displace another's",
                remedy="use dropless token-choice routing",
            )
    known = {
        tensor.untyped_storage().data_ptr() for layer in layers for _, tensor in trained(layer)
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.untyped_storage().data_ptr() not in known:
            raise UnsupportedLayerError(
                f"parameter {name} trains but belongs to no adapter layer of the engine",
                remedy="freeze it with requires_grad_(False)",
            )
