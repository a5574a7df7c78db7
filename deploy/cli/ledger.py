"""`auricle ledger`: read a ledger, export it, and verify an export without trusting its owner."""

from __future__ import annotations

import dataclasses
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.homes import existing_home, existing_site
from deploy.cli.output import Home, Json, emit, epsilon_text, table
from deploy.errors import CommandError
from privacy.errors import LedgerError

if TYPE_CHECKING:
    from rich.table import Table

    from privacy.ledger import Ledger
    from privacy.ledger_verify import Report
    from privacy.private_log import PrivateLog
    from privacy.signing import PublicIdentity

app = typer.Typer(help="The signed, append-only ledger of a site or coordinator.")

_NO_ROUND = "No round was trained."

Export = Annotated[Path, typer.Argument(metavar="FILE", help="An export of a ledger.")]

Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key", help="Public key (PEM) that the ledger must be signed with; may be repeated."
    ),
]
Private = Annotated[
    bool, typer.Option("--private", help="A site's private log (withdrawals of consent) instead.")
]


@app.command(epilog="Example: auricle ledger show --home auricle-site-st-mary --last 5")
def show(
    home: Home = None,
    last: Annotated[int, typer.Option(min=1, help="How many of the latest entries.")] = 20,
    private: Private = False,
    as_json: Json = False,
) -> None:
    """Verify the whole ledger, then print its latest entries."""
    book = _open_log(home, private=private)
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
def export(
    file: Export, home: Home = None, private: Private = False, as_json: Json = False
) -> None:
    """Write the ledger with its key and signed head to one file, for others to verify."""
    head = _open_log(home, private=private).export(file)
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
    key: Keys = None,
    private: Annotated[
        Path | None,
        typer.Option(help="Export of the site's private log, which the ledger must have fixed."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Verify every signature and hash, and compute ε again. Exit status 6 when anything is wrong.

    Without --key the file's own key is used: that shows the ledger is whole, not whose it is.
    """
    report, private_report = _reports(file, private, home, key)
    valid = report.valid and (private_report is None or private_report.valid)
    if not valid and not as_json:
        raise _invalid(report, private_report)
    fields, lines = dataclasses.asdict(report), []
    if private_report is not None:
        fields["private"] = dataclasses.asdict(private_report)
        lines = [f"{private_report.log_id}: {private_report.entries} entries, fixed by the ledger"]
    emit(
        fields,
        f"{report.log_id}: {report.entries} entries verified, root {report.root}",
        _epsilon_table(report),
        _signer(report.key_id, trusted=report.key_trusted),
        *lines,
        as_json=as_json,
    )
    if not valid:
        raise typer.Exit(LedgerError.exit_code)


@app.command(epilog="Example: auricle ledger prove 12 --out entry-12.proof.json")
def prove(
    index: Annotated[
        int | None, typer.Argument(min=0, help="Number of the entry; without it, --since.")
    ] = None,
    out: Annotated[Path, typer.Option(help="File to write.")] = Path("ledger.proof.json"),
    since: Annotated[
        int | None,
        typer.Option(min=0, help="Prove that the log extends the one of this many entries."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Write a proof of one entry, or of growth, that needs no other entry to be shown."""
    from deploy.ledgers import open_ledger
    from privacy.ledger_proof import prove_entry, prove_growth

    if (index is None) == (since is None):
        raise CommandError(
            "a proof is of one entry or of growth",
            remedy="give the entry's number, or --since with the size seen before",
            code="proof-unclear",
        )
    book = open_ledger(existing_home(home))
    data = prove_entry(book, index) if index is not None else prove_growth(book, since or 0)
    out.write_bytes(data)
    emit(
        {"file": out, "log_id": book.log_id, "size_bytes": len(data)},
        f"The proof is in {out}, {len(data)} bytes. Check it with:",
        f"  auricle ledger check-proof {out}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle ledger check-proof entry-12.proof.json --key st-mary.pem")
def check_proof(
    file: Annotated[Path, typer.Argument(help="A file of `auricle ledger prove`.")],
    key: Keys = None,
    root: Annotated[
        str | None, typer.Option(help="Root (hex) of the earlier head that you hold.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check a proof offline. Exit status 6 when it does not hold."""
    from privacy import ledger_proof

    try:
        data = file.read_bytes()
    except OSError as error:
        raise CommandError(
            f"the proof {file} cannot be read: {error.strerror}",
            remedy="give a file of `auricle ledger prove`",
            code="proof-missing",
        ) from error
    report = ledger_proof.check_proof(data, _trusted(key), root)
    entry = report.entry
    what = (
        f"Entry {entry.index}, {entry.kind} at {entry.at}, is in the log."
        if entry
        else f"The log extends that of {report.old_size} entries, root {report.old_root}."
    )
    shown = entry and {name: getattr(entry, name) for name in ("index", "at", "kind", "fields")}
    emit(
        {**vars(report), "entry": shown},
        what,
        f"{report.log_id}: {report.size} entries, root {report.root}",
        _signer(report.key_id, trusted=report.key_trusted),
        as_json=as_json,
    )


def _invalid(report: Report, private_report: Report | None) -> LedgerError:
    what, wrong = "ledger", report
    if report.valid and private_report is not None:
        what, wrong = "private log", private_report
    return LedgerError(
        f"the {what} does not verify after {wrong.entries} entries: {wrong.reason}",
        remedy="keep this file, and compare the tree heads that the other parties hold",
    )


def _epsilon_table(report: Report) -> Table | str:
    rows = [
        (
            line.site,
            line.purpose,
            str(line.reserved),
            f"{epsilon_text(line.epsilon_loc)}",
            f"{epsilon_text(line.epsilon_sec)} ({line.honest_sites} honest, claimed)",
            f"{line.delta:g}",
        )
        for line in report.epsilons
    ]
    columns = ("Site", "Purpose", "Rounds", "ε trusting nobody", "ε if summed securely", "δ")
    return table("ε computed again from what ran", columns, rows) if rows else _NO_ROUND


def _open_log(home: Path | None, *, private: bool) -> Ledger | PrivateLog:
    from deploy.ledgers import open_ledger, open_private_log

    return open_private_log(existing_site(home)) if private else open_ledger(existing_home(home))


def _reports(
    file: Path | None, private: Path | None, home: Path | None, keys: list[Path] | None
) -> tuple[Report, Report | None]:
    from deploy.ledgers import verify_home
    from privacy.ledger_verify import verify_export, verify_with_private

    if file is None:
        return verify_home(existing_home(home))
    if private is not None:
        return verify_with_private(file, private, _trusted(keys))
    return verify_export(file, _trusted(keys)), None


def _trusted(keys: list[Path] | None) -> list[PublicIdentity] | None:
    return [_public_key(path) for path in keys] if keys else None


def _signer(key_id: str | None, *, trusted: bool) -> str:
    return f"Signed by key {key_id}" + (
        "." if trusted else ", taken from the file itself: give --key to check it."
    )


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
