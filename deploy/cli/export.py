"""`auricle base export`: a base, or what a site serves, for ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit

EXAMPLE = "Example: auricle base export exported --folder base --int8"


def export(
    out: Annotated[Path, typer.Argument(help="New folder for the exported model.", metavar="OUT")],
    folder: Annotated[
        Path | None, typer.Option(help="A prepared base; without it, what the site serves.")
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in eight bits: a quarter of the size, faster.")
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a model for ONNX Runtime: a base, or a site's base with its active release merged in.

    Transcribe with it: auricle transcribe visit.wav --engine OUT. The folder is a copy: a later
    release or rollback does not change it.
    """
    from client_node.home import SiteHome
    from client_node.serving import served_base
    from model_core.base import load_base
    from model_core.export.folder import export_onnx, quantise_onnx

    if folder is not None:
        base, release = load_base(folder.absolute()), None
    else:
        base, release = served_base(SiteHome(existing_site(home)))
    if int8:
        with tempfile.TemporaryDirectory(prefix="auricle-") as scratch:
            export_onnx(base, Path(scratch))
            made = quantise_onnx(Path(scratch), out.absolute())
    else:
        made = export_onnx(base, out.absolute())
    emit(
        {
            "folder": made.folder,
            "precision": made.precision,
            "size_bytes": made.size_bytes,
            "weights_sha256": made.weights_sha256,
            "release": release,
        },
        f"{out}: {made.precision}, {made.size_bytes / 1e6:.1f} MB",
        f"Release {release} merged into the base" if release else "The base, without a release",
        as_json=as_json,
    )
