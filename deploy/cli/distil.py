"""`auricle base distil`: a cheaper base, taught by the dense checkpoint that it is split from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from deploy.cli.output import Json, emit, progress_console

EXAMPLE = "Example: auricle base distil recordings --synthetic 200 --folder distilled"


def distil(
    audio: Annotated[
        list[Path] | None,
        typer.Argument(help="Recordings, or folders of them; no transcripts are needed."),
    ] = None,
    folder: Annotated[
        Path, typer.Option(help="Where the run lives; the same command resumes it.")
    ] = Path("distilled"),
    source: Annotated[
        str | None,
        typer.Option(help="Dense checkpoint: as for `auricle base prepare`."),
    ] = None,
    synthetic: Annotated[int, typer.Option(help="Add this many public synthetic speakers.")] = 0,
    steps: Annotated[
        int, typer.Option(help="Steps of training after the fit; 0 leaves it at the fit.")
    ] = 0,
    batch: Annotated[int, typer.Option(help="Recordings a step.")] = 8,
    top_k: Annotated[int, typer.Option(help="Experts of eight that an encoder position runs.")] = 6,
    margin_s: Annotated[float, typer.Option(help="Seconds of window after each recording.")] = 2.0,
    language: Annotated[
        str, typer.Option(help="Of the recordings, where the checkpoint knows several.")
    ] = "en",
    as_json: Json = False,
) -> None:
    """Split a checkpoint's encoder into experts and distil it from the dense original.

    Fits layer by layer in closed form, a minute's work, then trains end to end if there are steps.
    Resumes where it was stopped. Trains on a GPU where there is one. The base is in FOLDER/base.
    """
    import dataclasses

    from deploy.distillation import training_recordings
    from model_core import distil_run
    from model_core.distil import DELTA_FILE, DistilConfig
    from model_core.weights import load_whisper, resolve_checkpoint

    recordings = training_recordings(audio or [], synthetic)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=progress_console()) as bars:
        stages = ("lessons", "training") if steps else ()
        tasks = {stage: bars.add_task(stage, total=None) for stage in stages}

        def show(at: distil_run.Progress) -> None:
            losses = at.losses
            told = "" if losses is None else f" loss {losses.states:.3f} + {losses.divergence:.3f}"
            described = f"{at.stage}{told}"
            bars.update(tasks[at.stage], completed=at.done, total=at.total, description=described)

        base = distil_run.distil_split(
            load_whisper(resolve_checkpoint(source)),
            recordings,
            folder.absolute(),
            mixture=dataclasses.replace(distil_run.SPLIT, top_k=top_k),
            config=DistilConfig(steps=steps, batch=batch),
            margin_s=margin_s,
            language=language,
            report=show,
        )
    made = folder.absolute() / distil_run.BASE_FOLDER
    delta_bytes = (folder / DELTA_FILE).stat().st_size
    emit(
        {"folder": made, "base_sha256": base.base_sha256, "delta_bytes": delta_bytes},
        f"{folder / distil_run.BASE_FOLDER}: {delta_bytes / 1e6:.1f} MB of it fitted",
        f"Base {base.base_sha256}",
        as_json=as_json,
    )
