"""The `auricle` command: mounts the sub-commands and turns every failure into words.

Commands import the rooms they use when they run, so that `auricle --help` needs no model library.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any, Protocol, runtime_checkable

import click
import typer

from deploy.cli import (
    base,
    coordinator,
    coordinator_care,
    demo,
    doctor,
    evaluate,
    export,
    ledger,
    privacy,
    privacy_audit,
    releases,
    rounds,
    site,
    site_records,
    site_releases,
    site_service,
    transcribe,
    upgrade,
)
from deploy.cli.output import emit_error

EXIT_INTERNAL = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
DEBUG_VARIABLE = "AURICLE_DEBUG"

app = typer.Typer(
    name="auricle",
    help="Federated speech recognition for institutions that may not share recordings.",
    epilog="Example: auricle doctor",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
coordinator_care.add_to(coordinator.app)
upgrade.add_to(coordinator.app, site.app)
app.add_typer(coordinator.app, name="coordinator")
site_records.add_to(site.app)
site_releases.add_to(site.app)
site_service.add_to(site.app)
app.add_typer(site.app, name="site")
app.add_typer(rounds.app, name="round")
app.add_typer(releases.app, name="release")
app.add_typer(ledger.app, name="ledger")
base.app.command("export", epilog=export.EXAMPLE)(export.export)
app.add_typer(base.app, name="base")
privacy_audit.register(privacy.app)
app.add_typer(privacy.app, name="privacy")
app.command("demo", epilog=demo.EXAMPLE)(demo.demo)
app.command("transcribe", epilog=transcribe.EXAMPLE)(transcribe.transcribe)
app.command("evaluate", epilog=evaluate.EXAMPLE)(evaluate.evaluate)
app.command("doctor", epilog=doctor.EXAMPLE)(doctor.doctor)


@runtime_checkable
class Told(Protocol):
    """An error that any room raises on purpose (AuricleError, ModelCoreError)."""

    code: str
    problem: str
    remedy: str
    exit_code: int


def installed_version() -> str:
    """The version of the installed package; "source" where it runs from an uninstalled tree."""
    try:
        return importlib.metadata.version("auricle")
    except importlib.metadata.PackageNotFoundError:
        return "source"


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"auricle {installed_version()}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Print the version."),
    ] = False,
) -> None:
    """Federated speech recognition for institutions that may not share recordings."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status; every failure has been printed."""
    as_json = "--json" in arguments
    try:
        result: Any = typer.main.get_command(app).main(
            args=list(arguments), prog_name="auricle", standalone_mode=False
        )
        status = result if isinstance(result, int) else 0
        if status == EXIT_INTERRUPTED:  # Typer's own answer to Ctrl-C
            emit_error("interrupted", "stopped by you", "run it again to go on", as_json=as_json)
        return status
    except click.ClickException as error:
        path = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
        remedy = f"see `{path or 'auricle'} --help`"
        emit_error("usage", error.format_message(), remedy, as_json=as_json)
        return EXIT_USAGE
    except Exception as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _explain(error, as_json=as_json)


def _explain(error: Exception, *, as_json: bool) -> int:
    if isinstance(error, Told):
        emit_error(error.code, error.problem, error.remedy, as_json=as_json)
        return error.exit_code
    emit_error(
        "internal",
        f"an unforeseen failure: {type(error).__name__}: {error}",
        f"set {DEBUG_VARIABLE}=1 to see where, and report it with what you did",
        as_json=as_json,
    )
    return EXIT_INTERNAL


def main() -> None:
    """Entry point of the `auricle` command."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
