"""How every command speaks: one JSON object with --json, tables and sentences without."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Home = Annotated[
    Path | None,
    typer.Option(
        "--home",
        envvar="AURICLE_HOME",
        help="Home folder; without it, the one in this folder.",
        file_okay=False,
    ),
]


def emit(fields: Mapping[str, Any], *human: RenderableType, as_json: bool) -> None:
    """Print a command's result on standard output: the fields, or what a person reads."""
    if as_json:
        typer.echo(json.dumps(jsonable(fields), ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for renderable in human:
        console.print(renderable, markup=False)


def emit_error(code: str, problem: str, remedy: str, *, as_json: bool) -> None:
    """Print what went wrong and what to do: one JSON object on standard output, or to stderr."""
    if as_json:
        typer.echo(json.dumps({"error": {"code": code, "problem": problem, "remedy": remedy}}))
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("Error: ", "bold red"), problem))
    console.print(Text.assemble(("Remedy: ", "bold"), remedy))
    console.print(Text(f"({code})", style="dim"))


def progress_console() -> Console:
    """Where progress goes: standard error, so that standard output stays a result."""
    return Console(stderr=True, highlight=False)


def table(title: str, columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Table:
    """A table of text cells; square brackets in a cell are text, not markup."""
    made = Table(title=title, title_justify="left", header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def epsilon_text(epsilon: float | None) -> str:
    """ε for a person; None and infinity both mean that nothing is guaranteed."""
    if epsilon is None or math.isinf(epsilon):
        return "unbounded"
    return f"{epsilon:.2f}"


def jsonable(value: Any) -> Any:
    """Nested data with paths as text and infinities as null, which JSON can carry."""
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
