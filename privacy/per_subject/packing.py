"""Where each trained tensor lies in the flat vector of an update.

Shapes: U subjects, D trained numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import get_args

from torch import Tensor

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import AdapterLayer, Kind
from privacy.plan import TensorSpec


class Packing:
    """Order, shapes and places of the trained tensors of some layers.

    Raises UnsupportedLayerError for no layers, a repeated name, factors whose shapes do not fit
    together, mixed dtypes, or an order that does not name exactly the trained tensors.
    """

    def __init__(self, layers: Sequence[AdapterLayer], order: Sequence[str] | None) -> None:
        _check(layers)
        shapes = {name: tuple(tensor.shape) for layer in layers for name, tensor in trained(layer)}
        names = list(shapes) if order is None else list(order)
        if sorted(names) != sorted(shapes):
            raise UnsupportedLayerError(
                "the packing order does not name exactly the layers' trained tensors: "
                f"not trained: {sorted(set(names) - set(shapes))[:4]}, "
                f"missing: {sorted(set(shapes) - set(names))[:4]}",
                remedy="pass the adapter's own tensor names, each once",
            )
        self.tensors = tuple(TensorSpec(name, shapes[name]) for name in names)
        self._columns: dict[str, tuple[int, TensorSpec]] = {}
        self.size = 0
        for tensor in self.tensors:
            self._columns[tensor.name] = (self.size, tensor)
            self.size += tensor.size

    def view(self, gradients_UD: Tensor, name: str) -> Tensor:
        """The columns of one tensor as [U, *shape]; shares memory with `gradients_UD`."""
        start, tensor = self._columns[name]
        columns = gradients_UD[:, start : start + tensor.size]
        return columns.view(len(gradients_UD), *tensor.shape)


def trained(layer: AdapterLayer) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors that train: the core where there is one, else down and up."""
    if layer.core is not None:
        yield f"{layer.name}.core", layer.core
    else:
        yield f"{layer.name}.down", layer.down
        yield f"{layer.name}.up", layer.up


def _check(layers: Sequence[AdapterLayer]) -> None:
    if not layers:
        raise UnsupportedLayerError("there is no adapter layer", remedy="attach an adapter first")
    names = [layer.name for layer in layers]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise UnsupportedLayerError(
            f"layers share a name: {sorted(repeated)[:4]}", remedy="give each layer its own name"
        )
    for layer in layers:
        rank = layer.down.shape[-2]
        lead = layer.down.shape[:-2]
        fits = (
            layer.kind in get_args(Kind)
            and len(lead) == (layer.kind == "experts")
            and layer.up.shape == (*lead, layer.up.shape[-2], rank)
            and (layer.core is None or layer.core.shape in ((*lead, rank, rank), (rank, rank)))
            and {t.dtype for _, t in trained(layer)} | {layer.down.dtype, layer.up.dtype}
            == {layers[0].down.dtype}
        )
        if not fits:
            raise UnsupportedLayerError(
                f"the factors of {layer.name} do not form a {layer.kind} adapter of one dtype",
                remedy="use down [.., r, in], up [.., out, r], core [.., r, r], alike in dtype",
            )
