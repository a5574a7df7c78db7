"""One forward and backward pass with the adapters' arithmetic replaced.

Shapes: B rows (utterances), T tokens of a row, S expert-sorted slots, U subjects, D trained
numbers.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import AdapterLayer, GradientError, Routing
from privacy.per_subject.function import AdapterFunction, Factors
from privacy.per_subject.grouping import Grouping, Rows, Slots
from privacy.per_subject.layers import Tokens, is_tokens, patches
from privacy.per_subject.packing import Packing, trained

Loss = Callable[[], Tensor]
Delta = Callable[[Tensor, Routing], Tensor]


class Step:
    """Adds the per-subject gradients of one microbatch to `gradients_UD`."""

    def __init__(self, packing: Packing, gradients_UD: Tensor, row_subject_B: Tensor) -> None:
        self._packing = packing
        self._gradients_UD = gradients_UD
        self._rows = Rows(row_subject_B)
        self._slots: dict[int, tuple[Routing, Slots]] = {}
        self._anchor = gradients_UD.new_zeros((), requires_grad=True)

    def run(self, layers: Sequence[AdapterLayer], loss: Loss, only_row: int | None = None) -> None:
        """Run `loss` and go backward from its sum over rows, or from one row's loss alone.

        Raises GradientError for losses that are not one per row and UnsupportedLayerError for
        layers that do not tell rows apart.
        """
        with self._attached(layers), torch.enable_grad():
            loss_B = loss()
            if loss_B.shape != (self._rows.count,):
                raise GradientError(
                    f"loss() returned shape {tuple(loss_B.shape)} for {self._rows.count} rows",
                    remedy="return one loss per row, not their mean",
                )
            total = loss_B.sum() if only_row is None else loss_B[only_row]
            if total.requires_grad:  # else no adapted layer took part
                # Only what lies between the loss and an adapter is computed; no .grad is set.
                torch.autograd.grad(total, self._anchor, allow_unused=True)

    @contextlib.contextmanager
    def _attached(self, layers: Sequence[AdapterLayer]) -> Iterator[None]:
        with contextlib.ExitStack() as undo:
            for layer in layers:
                if layer.kind != "experts":
                    _refuse_active(layer)
                    hook = layer.module.register_forward_hook(self._hook(layer))
                    undo.callback(hook.remove)
                else:
                    deltas, parameter = _deltas_of(layer)
                    deltas[parameter] = self._experts(layer)
                    undo.callback(deltas.pop, parameter)
            yield

    def _hook(self, layer: AdapterLayer) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        factors = self._factors(layer)
        adapt = {
            "linear": self._linear,
            "convolution": self._convolution,
            "embedding": self._embedding,
        }[layer.kind]

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], base: Tensor) -> Tensor:
            x = inputs[0]
            if x.shape[0] != self._rows.count:
                raise UnsupportedLayerError(
                    f"{layer.name} sees {x.shape[0]} rows where the batch has {self._rows.count}: "
                    "tokens seem to be flattened into rows, and clipping would act on tokens",
                    remedy="give the layer [B, T, width] inputs, or adapt it as stacked experts",
                )
            return adapt(module, x, base, factors)

        return hook

    def _linear(self, _module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
        x_BTi = x.reshape(self._rows.count, -1, x.shape[-1])
        return self._apply(x_BTi, base, factors, self._rows)

    def _convolution(self, module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
        y_BTo = self._apply(patches(_base(module), x), None, factors, self._rows)
        return base + y_BTo.transpose(1, 2).reshape(base.shape)

    def _embedding(self, module: nn.Module, x: Tensor, base: Tensor, factors: Factors) -> Tensor:
        padding_token: int | None = getattr(_base(module), "padding_idx", None)
        tokens = Tokens(self._rows.row_subject_B, padding_token)
        return self._apply(x.reshape(self._rows.count, -1), base, factors, tokens)

    def _experts(self, layer: AdapterLayer) -> Delta:
        factors = self._factors(layer)

        def delta(x_Si: Tensor, routing: Routing) -> Tensor:
            if parametrize.is_parametrized(layer.module, layer.parameter):
                raise _active(layer)
            return self._apply(x_Si, None, factors, self._slots_of(routing))

        return delta

    def _slots_of(self, routing: Routing) -> Slots:
        # Both parameters of an expert share a routing. It is kept with its slots, so that no
        # later routing can take its id during this step.
        known = self._slots.get(id(routing))
        if known is None:
            known = (routing, Slots(routing, self._rows, len(self._gradients_UD)))
            self._slots[id(routing)] = known
        return known[1]

    def _apply(
        self, x: Tensor, base: Tensor | None, factors: Factors, grouping: Grouping
    ) -> Tensor:
        # As peft does: the adapter computes in its own dtype and answers in its input's.
        dtype = factors.down.dtype
        base_own = None if base is None else base.to(dtype)
        with torch.autocast(x.device.type, enabled=False):
            out: Tensor = AdapterFunction.apply(  # type: ignore[no-untyped-call]
                x if is_tokens(x) else x.to(dtype), base_own, self._anchor, factors, grouping
            )
        return out.to(x.dtype if base is None else base.dtype)

    def _factors(self, layer: AdapterLayer) -> Factors:
        grads = {
            f"{name.rpartition('.')[2]}_grad": self._packing.view(self._gradients_UD, name)
            for name, _ in trained(layer)
        }
        core = None if layer.core is None else layer.core.detach()
        return Factors(layer.down.detach(), layer.up.detach(), core, layer.scaling, **grads)


def _base(module: nn.Module) -> nn.Module:
    """The layer that a peft layer wraps, or the layer itself."""
    base: nn.Module = getattr(module, "base_layer", module)
    return base


def _refuse_active(layer: AdapterLayer) -> None:
    """peft layers say in `disable_adapters` whether their own adapter is off."""
    if getattr(layer.module, "disable_adapters", True) is False:
        raise _active(layer)


def _deltas_of(layer: AdapterLayer) -> tuple[MutableMapping[str, Delta], str]:
    deltas = getattr(layer.module, "deltas", None)
    if not isinstance(deltas, MutableMapping) or layer.parameter is None:
        raise UnsupportedLayerError(
            f"{layer.name} has no `deltas` to extend its stacked parameter",
            remedy="use an experts module that implements the deltas protocol",
        )
    if layer.parameter in deltas:
        raise _active(layer)
    return deltas, layer.parameter


def _active(layer: AdapterLayer) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"the adapter of {layer.name} is still active beside the engine's: it would count twice",
        remedy="call the engine inside `with peft_model.disable_adapter():`",
        code="adapter-active",
    )
