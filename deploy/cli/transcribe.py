"""`auricle transcribe`: recordings to text with the site's active release, or the base."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit

EXAMPLE = "Example: auricle transcribe visit.wav --home auricle-site-st-mary"


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files of any rate.", metavar="FILE")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Transcribe recordings on this machine with what the site serves."""
    from client_node.home import SiteHome
    from client_node.serving import open_transcriber

    transcriber = open_transcriber(SiteHome(existing_site(home)))
    made = [(path, transcriber.transcribe(path)) for path in files]
    lines = [
        one.transcript.text if len(made) == 1 else f"{path}: {one.transcript.text}"
        for path, one in made
    ]
    results = [
        {
            "file": path,
            "text": one.transcript.text,
            "duration_s": one.transcript.duration_s,
            "release": one.release,
        }
        for path, one in made
    ]
    emit({"results": results}, *lines, as_json=as_json)
