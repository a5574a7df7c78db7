"""How a fault is planted: one or more lines of a real function, exchanged while a test runs.

The function object itself gets the altered code, so that every module that imported it by name
runs the mutant. A line that is no longer in the source is an error, not a silent pass.
"""

from __future__ import annotations
import __future__

import contextlib
import dataclasses
import inspect
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Edit:
    """`old`, which occurs once in the source of `function`, becomes `new`."""

    function: Callable[..., Any]
    old: str
    new: str


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One planted fault.

    Attributes:
        name: kebab-case.
        area: part of the step that it is in.
        source: where such a fault is described, or was met.
        edits: the fault.
        killer: "probe NAME", or the test that fails with it; "" where nothing does.
        why: for a survivor, why nothing does.
    """

    name: str
    area: str
    source: str
    edits: tuple[Edit, ...]
    killer: str
    why: str = ""

    @contextlib.contextmanager
    def planted(self) -> Iterator[None]:
        """The fault is in the program within this block."""
        with contextlib.ExitStack() as undo:
            by_function: dict[Any, list[Edit]] = {}
            for edit in self.edits:
                by_function.setdefault(edit.function, []).append(edit)
            for function, edits in by_function.items():
                undo.enter_context(_planted(function, edits))
            yield


@contextlib.contextmanager
def _planted(function: Any, edits: list[Edit]) -> Iterator[None]:
    plain: types.FunctionType = inspect.unwrap(getattr(function, "__func__", function))
    honest = plain.__code__
    plain.__code__ = _altered(plain, edits)
    _forget()
    try:
        yield
    finally:
        plain.__code__ = honest
        _forget()


def _forget() -> None:
    """Clear what the rooms' functions remember, which the fault would not reach."""
    for name, module in list(sys.modules.items()):
        if name.startswith("privacy."):
            for value in vars(module).values():
                if hasattr(value, "cache_clear"):
                    value.cache_clear()


def _altered(plain: types.FunctionType, edits: list[Edit]) -> types.CodeType:
    source = textwrap.dedent(inspect.getsource(plain))
    for edit in edits:
        if source.count(edit.old) != 1:
            raise LookupError(f"{plain.__qualname__} has {source.count(edit.old)} × {edit.old!r}")
        source = source.replace(edit.old, edit.new)
    body = source[source.index("def ") :]  # without decorators
    code = compile(body, plain.__code__.co_filename, "exec", __future__.annotations.compiler_flag)
    (made,) = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return made
