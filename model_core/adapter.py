"""Adapters: what is trained and shipped, on top of the frozen base.

An adapter adds scaling · B A x to chosen linear layers and expert stacks (LoRA, Hu et al. 2021).
Two kinds:

* "lora": both factors train, A [r, in] and B [out, r] per matrix;
* "core": A and an outer factor U [out, r] are frozen, and only R [r, r] between them trains, with
  B = U R (LoRA-XS, Bałazy et al. 2024). Few numbers, so little noise under differential privacy.

Either way stock peft holds and computes the adapter: B = U R is folded into peft's `lora_B`, so
what is saved is a plain LoRA that `PeftModel.from_pretrained` loads. During private training
peft's own computation is switched off (`Adapter.training_mode`) and the gradient engine applies
the factors of `Adapter.layers` itself, with one copy per subject.

An adapter works on a twin of the base: its own module tree over the same frozen tensors. The base
is never changed, and any number of adapters share its memory.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers import WhisperForConditionalGeneration

from model_core.adapter_file import ADAPTER_FILE, check_state, pack_adapter, read_adapter
from model_core.adapter_targets import (
    AdapterConfig,
    AdapterKind,
    Layer,
    Target,
    adapter_keys,
    find_targets,
)
from model_core.basis import basis_from_bytes, basis_sha256, basis_to_bytes, make_basis
from model_core.errors import AdapterError
from model_core.twin import twin

__all__ = [
    "Adapter",
    "AdapterConfig",
    "AdapterKind",
    "Layer",
    "attach",
    "basis_from_bytes",
    "basis_sha256",
    "basis_to_bytes",
    "load_adapter",
    "make_basis",
]

PEFT_NAME = "default"


class Adapter:
    """An adapter attached to a twin of the base. Made by `attach` and `load_adapter`.

    Attributes:
        config: with its targets resolved to exact names.
        peft_model: stock peft around the twin.
        layers: the adapted matrices, in packing order.
    """

    def __init__(self, peft_model: PeftModel, config: AdapterConfig, layers: list[Layer]) -> None:
        self.peft_model = peft_model
        self.config = config
        self.layers = layers

    @property
    def model(self) -> WhisperForConditionalGeneration:
        """The twin with the adapter's layers in it."""
        return self.peft_model.get_base_model()

    def tensor_specs(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes of what trains, in packing order."""
        return [(name, tuple(tensor.shape)) for name, tensor in self._trainable()]

    @property
    def size(self) -> int:
        """D, how many numbers train."""
        return sum(tensor.numel() for _, tensor in self._trainable())

    def vector(self) -> Tensor:
        """What trains, as one float32 vector [D]; a copy."""
        return torch.cat([tensor.reshape(-1) for _, tensor in self._trainable()]).detach().clone()

    @torch.no_grad()
    def load_vector(self, vector_D: Tensor) -> None:
        """Set what trains. Raises AdapterError (adapter-shape) unless it is finite float32 [D]."""
        fits = vector_D.shape == (self.size,) and vector_D.dtype == torch.float32
        if not (fits and bool(torch.isfinite(vector_D).all())):
            raise AdapterError(
                f"the adapter takes {self.size} finite float32 numbers, not "
                f"{tuple(vector_D.shape)} of {vector_D.dtype}",
                remedy="use the vector of an adapter with the same configuration",
                code="adapter-shape",
            )
        offset = 0
        for _, tensor in self._trainable():
            piece = vector_D[offset : offset + tensor.numel()]
            tensor.copy_(piece.view(tensor.shape))
            offset += tensor.numel()
        self._fold()

    @contextmanager
    def training_mode(self) -> Iterator[Adapter]:
        """Within it peft computes nothing: the gradient engine applies `layers` instead."""
        with self.peft_model.disable_adapter():
            yield self

    def merged(self) -> WhisperForConditionalGeneration:
        """A model of its own with the adapter added into the weights, for fast inference.

        Unadapted tensors are shared with the base; adapted ones are copies.
        """
        own = {id(parameter) for parameter in self.peft_model.parameters()}
        own &= {id(parameter) for parameter in self._adapted_and_peft_parameters()}
        return twin(self.peft_model, own=own).merge_and_unload().requires_grad_(False).eval()

    def to_safetensors(self) -> bytes:
        """A whole adapter: a plain peft LoRA (a core is written as the LoRA that it equals)."""
        state: dict[str, Tensor] = get_peft_model_state_dict(self.peft_model)
        check_state(state, adapter_keys(self.layers))
        return pack_adapter(state, self.config)

    def save(self, folder: Path) -> None:
        """Write a folder that stock `PeftModel.from_pretrained` loads onto the same base."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ADAPTER_FILE).write_bytes(self.to_safetensors())
        self.peft_model.peft_config[PEFT_NAME].save_pretrained(folder)

    def _adapted_and_peft_parameters(self) -> Iterator[nn.Parameter]:
        for name, parameter in self.peft_model.named_parameters():
            if ".lora_" in name:
                yield parameter
        for layer in self.layers:
            yield getattr(layer.module, layer.parameter or "weight")

    def _trainable(self) -> list[tuple[str, Tensor]]:
        return [item for layer in self.layers for item in layer.trainable]

    @torch.no_grad()
    def _fold(self) -> None:
        # For kind "lora", layer.down and layer.up are views of peft's own tensors: nothing to do.
        for layer, (_, lora_up) in zip(self.layers, self.peft_factors(), strict=True):
            if layer.core is not None:
                lora_up.copy_(layer.up @ layer.core)

    def peft_factors(self) -> list[tuple[Tensor, Tensor]]:
        """peft's (A, B) of each layer, as views shaped like `Layer.down` and `Layer.up`."""
        wrappers = _peft_layers(self.peft_model)
        return [_factor_views(wrappers[layer.name]) for layer in self.layers]


Basis = Mapping[str, Tensor]


def attach(
    base_model: WhisperForConditionalGeneration,
    config: AdapterConfig,
    basis: Basis | None = None,
) -> Adapter:
    """Attach a fresh adapter that changes nothing yet (B = 0, or R = 0) to a twin of the base.

    Kind "core" needs `basis` (`model_core.basis`); kind "lora" starts A from `config.seed`.
    Raises AdapterError: `adapter-target` or `adapter-basis`.
    """
    targets = find_targets(base_model, config)
    if (config.kind == "core") != (basis is not None):
        raise AdapterError(
            f"an adapter of kind {config.kind} was given "
            f"{'a basis' if basis is not None else 'no basis'}",
            remedy="give a basis for kind core, and none for kind lora",
            code="adapter-basis",
        )
    exact = dataclasses.replace(
        config,
        target_modules=tuple(t.name for t in targets if t.parameter is None),
        target_parameters=tuple(t.name for t in targets if t.parameter is not None),
    )
    peft_model = _wrap(base_model, exact)
    wrappers = _peft_layers(peft_model)
    layers = [_layer(target, wrappers[target.name], exact, basis) for target in targets]
    return Adapter(peft_model.eval(), exact, layers)


def _wrap(base_model: WhisperForConditionalGeneration, exact: AdapterConfig) -> PeftModel:
    """Stock peft around a twin of the base, with A drawn from the configuration's seed."""
    peft_config = LoraConfig(
        r=exact.rank,
        lora_alpha=exact.scaling * exact.rank,
        target_modules=list(exact.target_modules),
        target_parameters=list(exact.target_parameters),
        lora_dropout=0.0,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft 0.21 asks transformers 5 for a property under its old name.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        torch.manual_seed(exact.seed)
        peft_model = get_peft_model(twin(base_model), peft_config, adapter_name=PEFT_NAME)
    # The base's path is a local matter and must not be written into a release.
    peft_config.base_model_name_or_path = None
    return peft_model


def load_adapter(base_model: WhisperForConditionalGeneration, source: bytes | Path) -> Adapter:
    """Attach a saved adapter, from its bytes or its folder, as kind "lora".

    Raises AdapterError: `adapter-malformed`, `adapter-target` (made for another base) or
    `adapter-shape`.
    """
    config, state = read_adapter(source)
    adapter = attach(base_model, config)
    own: dict[str, Tensor] = get_peft_model_state_dict(adapter.peft_model)
    check_state(state, adapter_keys(adapter.layers), {n: t.shape for n, t in own.items()})
    for name, tensor in state.items():
        own[name].detach().copy_(tensor)
    return adapter


def _peft_layers(peft_model: PeftModel) -> dict[str, nn.Module]:
    """peft's wrapper of every target, by the target's name in the base."""
    found: dict[str, nn.Module] = {}
    for path, module in peft_model.get_base_model().named_modules():
        name = path.removesuffix(".base_layer")
        while name.endswith(".base_layer"):
            name = name.removesuffix(".base_layer")
        if isinstance(module, ParamWrapper):
            found[f"{name}.{module.parameter_name}"] = module
        elif hasattr(module, "lora_A"):
            found[name] = module
    return found


def _factor_views(wrapper: nn.Module) -> tuple[Tensor, Tensor]:
    """peft's A and B; those of E experts are packed as [E·r, in] and [out, r·E]."""
    down = wrapper.lora_A[PEFT_NAME].weight.detach()  # type: ignore[index, union-attr]
    up = wrapper.lora_B[PEFT_NAME].weight.detach()  # type: ignore[index, union-attr]
    if not isinstance(wrapper, ParamWrapper):
        return down, up
    experts = wrapper.num_experts
    rank = down.shape[0] // experts
    return (
        down.view(experts, rank, -1),
        up.view(up.shape[0], rank, experts).permute(2, 0, 1),
    )


def _layer(target: Target, wrapper: nn.Module, config: AdapterConfig, basis: Basis | None) -> Layer:
    peft_down, peft_up = _factor_views(wrapper)
    down, up, core = peft_down, peft_up, None
    if basis is not None:
        down = _from_basis(basis, f"{target.name}.down", peft_down.shape)
        up = _from_basis(basis, f"{target.name}.up", peft_up.shape)
        peft_down.copy_(down)
        # One core for all experts of a stack: they start as equal copies, so they share the basis
        # too, and a core each would take E times the noise for the same signal.
        core = torch.zeros(config.rank, config.rank)
    return Layer(
        name=target.name,
        module=wrapper.get_base_layer(),  # type: ignore[operator]
        kind="linear" if target.parameter is None else "experts",
        parameter=target.parameter,
        down=down,
        up=up,
        core=core,
        scaling=config.scaling,
    )


def _from_basis(basis: Basis, name: str, shape: torch.Size) -> Tensor:
    factor = basis.get(name)
    if factor is None or factor.shape != shape or factor.dtype != torch.float32:
        found = "missing" if factor is None else f"{tuple(factor.shape)} of {factor.dtype}"
        raise AdapterError(
            f"the basis does not fit the adapter: {name} is {found}, expected "
            f"{tuple(shape)} of torch.float32",
            remedy="make the basis for the same base, rank and targets",
            code="adapter-basis",
        )
    return factor.detach().clone()
