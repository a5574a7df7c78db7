"""Adapter layers of a plain peft model, and what makes a model unfit for per-subject gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

from peft import PeftModel
from peft.tuners.lora.layer import Conv1d, Conv2d
from peft.tuners.lora.layer import Embedding as LoraEmbedding
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import AdapterLayer, Kind
from privacy.per_subject.packing import trained


@dataclasses.dataclass(frozen=True)
class PeftLayer:
    """A `peft` LoRA layer as the engine sees it; the factors are views of peft's own parameters."""

    name: str
    module: nn.Module
    down: Tensor
    up: Tensor
    scaling: float
    kind: Kind
    parameter: str | None = None
    core: Tensor | None = None


def layers_of(peft_model: PeftModel) -> list[PeftLayer]:
    """The LoRA layers of a peft model, in module order: linear, convolution, embedding.

    Raises UnsupportedLayerError naming the first adapted layer that is another one, that has not
    exactly one active adapter, that has dropout, a variant or a bias of its own, or whose base
    layer couples rows.
    """
    layers = [
        _layer(name, module)
        for name, module in peft_model.named_modules()
        if isinstance(module, BaseTunerLayer)
    ]
    if not layers:
        raise UnsupportedLayerError(
            "the model has no peft adapter layer", remedy="attach one with get_peft_model()"
        )
    return layers


def _layer(name: str, module: Any) -> PeftLayer:
    kind = _kind(module)
    if kind is None:
        raise UnsupportedLayerError(
            f"{name} is adapted by {type(module).__name__}, which the engine does not know",
            remedy="adapt linear, convolution (1-d, 2-d) or embedding layers with LoRA, or pass "
            "the layer to the engine yourself",
        )
    if len(module.active_adapters) != 1:
        raise UnsupportedLayerError(
            f"{name} has {len(module.active_adapters)} active adapters",
            remedy="set exactly one with set_adapter()",
        )
    adapter = module.active_adapters[0]
    _refuse_beyond_plain(name, module, adapter)
    base = module.get_base_layer()
    if kind == "embedding":
        _refuse_embedding(name, base)
        down, up = module.lora_embedding_A[adapter], module.lora_embedding_B[adapter]
    else:
        if kind == "convolution":
            _refuse_convolution(name, base)
        down, up = module.lora_A[adapter].weight, module.lora_B[adapter].weight
    return PeftLayer(
        name=name,
        module=module,
        down=down.flatten(1),
        up=up.flatten(1),
        scaling=float(module.scaling[adapter]),
        kind=kind,
    )


def _kind(module: Any) -> Kind | None:
    known: list[tuple[Any, Any, Kind]] = [
        (LoraLinear, nn.Linear, "linear"),
        (Conv1d, nn.Conv1d, "convolution"),
        (Conv2d, nn.Conv2d, "convolution"),
        (LoraEmbedding, nn.Embedding, "embedding"),
    ]
    for adapted, base, kind in known:
        if isinstance(module, adapted) and isinstance(module.get_base_layer(), base):
            return kind
    return None


def _refuse_beyond_plain(name: str, module: Any, adapter: str) -> None:
    beyond_plain = {
        "a variant such as DoRA": adapter in module.lora_variant,
        "a bias of its own": module.lora_bias.get(adapter, False),
        "dropout": not isinstance(module.lora_dropout[adapter], nn.Identity),
        "a transposed weight": isinstance(module, LoraLinear) and module.fan_in_fan_out,
    }
    found = [what for what, holds in beyond_plain.items() if holds]
    if found:
        raise UnsupportedLayerError(
            f"the LoRA of {name} has {', '.join(found)}",
            remedy="use LoraConfig(lora_dropout=0) without variants and biases",
        )


def _refuse_convolution(name: str, base: Any) -> None:
    # peft's own adapter knows no dilation either: what was trained could not be served.
    odd = {
        "groups": base.groups != 1,
        "dilation": set(base.dilation) != {1},
        "padding by name": isinstance(base.padding, str),
        "padding with other than zeros": base.padding_mode != "zeros",
    }
    found = [what for what, holds in odd.items() if holds]
    if found:
        raise UnsupportedLayerError(
            f"the convolution {name} has {', '.join(found)}",
            remedy="use groups=1, dilation=1 and zero padding in numbers, or adapt another layer",
        )


def _refuse_embedding(name: str, base: nn.Embedding) -> None:
    if base.scale_grad_by_freq or base.max_norm is not None:
        raise UnsupportedLayerError(
            f"the embedding {name} scales gradients by the batch's token counts or renormalises "
            "its rows, so one subject's tokens act on another's",
            remedy="use nn.Embedding without scale_grad_by_freq and max_norm",
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
