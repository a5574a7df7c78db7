"""`auricle ledger`: read a ledger, export it, and verify an export without trusting its owner."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.homes import existing_home
from deploy.cli.output import Home, Json, emit, epsilon_text, table
from deploy.errors import CommandError
from privacy.errors import LedgerError

if TYPE_CHECKING:
    from privacy.signing import PublicIdentity

app = typer.Typer(help="The signed, append-only ledger of a site or coordinator.")

Export = Annotated[Path, typer.Argument(metavar="FILE", help="An export of a ledger.")]


@app.command(epilog="Example: auricle ledger show --home auricle-site-st-mary --last 5")
def show(
    home: Home = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the latest entries.")] = 20,
    as_json: Json = False,
) -> None:
    """Verify the whole ledger, then print its latest entries."""
    from deploy.ledgers import open_ledger

    book = open_ledger(existing_home(home))
    head = book.tree_head()
    entries = deque(book.entries(max(0, head.size - last), head.size), maxlen=last)
    rows = [
        (
            str(entry.index),
            entry.at,
            entry.kind,
            ", ".join(f"{name}={value}" for name, value in entry.fields.items()),
        )
        for entry in entries
    ]
    emit(
        {
            "log_id": head.log_id,
            "entries": head.size,
            "root": head.root,
            "latest": [
                {
                    "index": entry.index,
                    "at": entry.at,
                    "kind": entry.kind,
                    "fields": dict(entry.fields),
                }
                for entry in entries
            ],
        },
        table(f"{head.log_id}", ("Entry", "At", "Kind", "Fields"), rows),
        f"{head.size} entries verified, root {head.root}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle ledger export ledger.jsonl --home auricle-site-st-mary")
def export(file: Export, home: Home = None, as_json: Json = False) -> None:
    """Write the ledger with its key and signed head to one file, for others to verify."""
    from deploy.ledgers import open_ledger

    head = open_ledger(existing_home(home)).export(file)
    emit(
        {"file": file, "log_id": head.log_id, "entries": head.size, "root": head.root},
        f"{head.size} entries of {head.log_id} are in {file}. Verify them with:",
        f"  auricle ledger verify {file}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle ledger verify ledger.jsonl --key coordinator-public.pem")
def verify(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="An export; without it, this home's ledger."),
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Public key (PEM) that the ledger must be signed with; may be repeated."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Verify every signature and hash, and compute ε again. Exit status 6 when anything is wrong.

    Without --key the file's own key is used: that shows the ledger is whole, not whose it is.
    """
    from deploy.ledgers import verify_home
    from privacy.ledger_verify import verify_export

    report = (
        verify_home(existing_home(home))
        if file is None
        else verify_export(file, None if not key else [_public_key(path) for path in key])
    )
    rows = [
        (
            line.site,
            line.purpose,
            str(line.reserved),
            f"{epsilon_text(line.epsilon_loc)}",
            f"{epsilon_text(line.epsilon_sec)} ({line.honest_sites} honest)",
            f"{line.delta:g}",
        )
        for line in report.epsilons
    ]
    columns = ("Site", "Purpose", "Rounds", "ε trusting nobody", "ε with secure aggregation", "δ")
    if not report.valid and not as_json:
        raise LedgerError(
            f"the ledger does not verify after {report.entries} entries: {report.reason}",
            remedy="keep this file, and compare the tree heads that the other parties hold",
        )
    emit(
        dataclasses.asdict(report),
        f"{report.log_id}: {report.entries} entries verified, root {report.root}",
        table("ε computed again from what ran", columns, rows) if rows else "No round was trained.",
        f"Signed by key {report.key_id}"
        + ("." if report.key_trusted else ", taken from the file itself: give --key to check it."),
        as_json=as_json,
    )
    if not report.valid:
        raise typer.Exit(LedgerError.exit_code)


def _public_key(path: Path) -> PublicIdentity:
    from privacy.signing import PublicIdentity

    try:
        return PublicIdentity.from_pem(path.read_text(encoding="ascii"))
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(
            f"the key {path} cannot be read: {error}",
            remedy="give the PEM file of a public key",
            code="key-missing",
        ) from error
