"""`auricle coordinator`: the side that plans rounds and never sees a recording."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.homes import coordinator_root, existing_coordinator
from deploy.cli.output import Home, Json, emit, table
from deploy.errors import CommandError

app = typer.Typer(
    help="The side that plans rounds, sums updates and signs releases.", no_args_is_help=True
)
