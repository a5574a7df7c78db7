"""`auricle coordinator`: the side that plans rounds and never sees a recording."""

from __future__ import annotations

import typer

app = typer.Typer(
    help="The side that plans rounds, sums updates and signs releases.", no_args_is_help=True
)
