"""`auricle evaluate`: how well a model transcribes recordings whose text is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.output import Json, emit, table

EXAMPLE = "Example: auricle evaluate base public.jsonl --adapter adapter"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="A prepared base's folder, or a checkpoint: a name (tiny.en, base), a folder, or "
            "a hub id.",
            metavar="MODEL",
        ),
    ],
    manifest: Annotated[
        Path,
        typer.Argument(
            help="JSON lines with audio, text, and optionally language and terms.",
            metavar="MANIFEST",
        ),
    ],
    adapter: Annotated[
        list[Path] | None,
        typer.Option(help="Folder of an adapter to put on the model; may be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Transcribe the recordings of a manifest and compare with their texts.

    Prints word and character error rate, the terms that were right, and how far the words'
    confidences are from the truth (expected calibration error), for all and by language.
    """
    from model_core import evaluation
    from model_core.adapter_stack import merge_adapters
    from model_core.base import open_base, rebased

    recordings = evaluation.read_manifest(manifest)
    base = open_base(model)
    if adapter:
        base = rebased(base, merge_adapters(base.model, adapter))
    report = evaluation.evaluate(base, recordings)
    rows = {"all": report.overall, **report.by_language}
    cells = [
        (
            name,
            str(each.recordings),
            f"{each.audio_s / 60:.1f} min",
            f"{100 * each.wer:.2f} %",
            f"{100 * each.cer:.2f} %",
            f"{each.terms_right} of {each.terms_total}",
            "-" if each.calibration is None else f"{each.calibration.ece:.3f}",
        )
        for name, each in rows.items()
    ]
    columns = ("Language", "Recordings", "Audio", "WER", "CER", "Terms right", "ECE")
    real_time = report.compute_s / report.overall.audio_s
    emit(
        {"base_sha256": base.base_sha256, **dataclasses.asdict(report)},
        table(f"{model} on {manifest.name}", columns, cells),
        f"Transcribed in {real_time:.2f} of the recordings' own time.",
        as_json=as_json,
    )
