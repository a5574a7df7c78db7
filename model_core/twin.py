"""A second module tree over the same tensors.

peft rewrites the module tree it is given, and merging writes into weights. Working on a twin keeps
the base as it was, at the cost of Python objects only.
"""

from __future__ import annotations

import copy
from collections.abc import Collection
from itertools import chain
from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin(module: Module, own: Collection[int] = ()) -> Module:
    """Copy the module tree; share every parameter and buffer except those whose id is in `own`."""
    tensors = chain(module.parameters(), module.buffers())
    shared = {id(tensor): tensor for tensor in tensors if id(tensor) not in own}
    return copy.deepcopy(module, memo=dict(shared))
