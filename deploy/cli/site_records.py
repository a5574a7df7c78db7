"""`auricle site key`, `budget` and `rotate-key`: a site's key, and what it shows to an officer."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit, epsilon_text, table


def add_to(app: typer.Typer) -> None:
    """Add the commands to `auricle site`."""
    app.command(epilog="Example: auricle site key --out st-mary-public.pem")(key)
    app.command(epilog="Example: auricle site budget --subjects")(budget)
    app.command(epilog="Example: auricle site rotate-key")(rotate_key)


def key(
    out: Annotated[Path | None, typer.Option(help="File to write the public key to (PEM).")] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """The site's public key, which verifies its ledger, updates and answers."""
    from client_node.home import SiteHome
    from privacy.signing import Identity

    public = Identity.load(SiteHome(existing_site(home)).site_key).public
    if out is not None:
        out.write_text(public.public_pem, encoding="ascii")
    emit(
        {"key_id": public.key_id, "public_pem": public.public_pem, "file": out},
        public.public_pem.rstrip() if out is None else f"The public key is in {out}",
        f"Key {public.key_id}",
        as_json=as_json,
    )


def rotate_key(home: Home = None, as_json: Json = False) -> None:
    """Replace the site's signing key, once its service is stopped; the old one vouches for it."""
    from client_node import rotate
    from client_node.assembly import utc_now
    from client_node.home import SiteHome

    rotated = rotate.rotate_key(SiteHome(existing_site(home)), utc_now)
    emit(
        dataclasses.asdict(rotated),
        f"{rotated.site} signs with {rotated.key_id} from now on.",
        f"Updates signed with {rotated.old_key_id} are refused; the ledger goes on.",
        as_json=as_json,
    )


def budget(
    subjects: Annotated[
        bool,
        typer.Option("--subjects", help="What each person has spent; names are shown here only."),
    ] = False,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """What has been spent of each cap, and by each person, before and after the next round."""
    from client_node.home import SiteHome
    from client_node.spend import collect_spend

    spend = collect_spend(SiteHome(existing_site(home)), subjects=subjects)
    caps = [
        (line.purpose, line.epsilon_loc, line.epsilon_cap, line.reserved + line.committed)
        for line in spend.purposes
    ]
    caps += [
        (line.scope, line.epsilon_loc, line.epsilon_cap, line.rounds) for line in spend.overall
    ]
    rows = [
        (name, epsilon_text(spent), _cap_text(cap), str(rounds))
        for name, spent, cap, rounds in caps
    ]
    people = [
        (
            line.subject,
            "yes" if line.consent else "withdrawn",
            epsilon_text(line.epsilon),
            "-" if line.epsilon_next is None else epsilon_text(line.epsilon_next),
        )
        for line in spend.subjects
    ]
    columns = ("Subject", "Consent", "ε spent", "After the next round")
    emit(
        dataclasses.asdict(spend),
        table(f"Budget of {spend.site}, δ = {spend.delta:g}", _CAP_COLUMNS, rows),
        *([table("Subjects", columns, people)] if subjects else []),
        f"Cap of one person over all purposes: {_cap_text(spend.subject_cap)}",
        as_json=as_json,
    )


_CAP_COLUMNS = ("Purpose or period", "ε spent", "ε cap", "Rounds")


def _cap_text(cap: float) -> str:
    return "none" if cap == float("inf") else epsilon_text(cap)
