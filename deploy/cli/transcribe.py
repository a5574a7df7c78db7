"""`auricle transcribe`: recordings to text with the site's active release, or the base."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit

if TYPE_CHECKING:
    from client_node.inference import Transcription

EXAMPLE = "Example: auricle transcribe visit.wav --home auricle-site-st-mary"


def transcribe(
    files: Annotated[list[Path], typer.Argument(help="Audio files of any rate.", metavar="FILE")],
    engine: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `auricle base export`, to use instead of what the site serves."
        ),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Transcribe recordings on this machine with what the site serves, or an exported model."""
    made = (
        _site_transcripts(files, home) if engine is None else _exported_transcripts(files, engine)
    )
    lines = [
        one.transcript.text if len(made) == 1 else f"{path}: {one.transcript.text}"
        for path, one in zip(files, made, strict=True)
    ]
    results = [
        {
            "file": path,
            "text": one.transcript.text,
            "duration_s": one.transcript.duration_s,
            "release": one.release,
        }
        for path, one in zip(files, made, strict=True)
    ]
    emit({"results": results}, *lines, as_json=as_json)


def _site_transcripts(files: list[Path], home: Path | None) -> list[Transcription]:
    from client_node.home import SiteHome
    from client_node.serving import open_transcriber

    transcriber = open_transcriber(SiteHome(existing_site(home)))
    return [transcriber.transcribe(path) for path in files]


def _exported_transcripts(files: list[Path], engine: Path) -> list[Transcription]:
    from client_node.inference import Transcription
    from model_core.audio import read_audio
    from model_core.export.folder import load_onnx
    from model_core.export.transcribe import OnnxTranscriber

    transcriber = OnnxTranscriber(load_onnx(engine.absolute()))
    return [Transcription(transcriber.transcribe(read_audio(path)), None) for path in files]
