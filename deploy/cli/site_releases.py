"""`auricle site releases`, `activate`, `rollback` and `canary`: the life of models at a site."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit, table

if TYPE_CHECKING:
    from client_node.home import SiteHome

canary = typer.Typer(
    help="Recordings on which each release is tried before it serves.", no_args_is_help=True
)


def add_to(app: typer.Typer) -> None:
    """Add the commands to `auricle site`."""
    app.command(epilog="Example: auricle site releases --json")(releases)
    app.command(epilog="Example: auricle site activate 0f1e2d3c-a1b2c3d4e5f6")(activate)
    app.command(epilog="Example: auricle site rollback --home auricle-site-st-mary")(rollback)
    app.add_typer(canary, name="canary")


def _open(home: Path | None) -> SiteHome:
    from client_node.home import SiteHome

    return SiteHome(existing_site(home))


def releases(home: Home = None, as_json: Json = False) -> None:
    """Every release that came here: where it stands, since when, and why one was refused."""
    from client_node.home import SiteSettings
    from client_node.serving import open_model_store

    opened = _open(home)
    store = open_model_store(opened, SiteSettings.load(opened.settings))
    held = store.releases()
    rows = [
        (
            one.release,
            one.standing,
            one.latest.at if one.latest else "-",
            (one.latest.reason or one.latest.code or "-") if one.latest else "-",
        )
        for one in held
    ]
    emit(
        {
            "serves": store.active_id,
            "releases": [dataclasses.asdict(one) for one in held],
            "history": [dataclasses.asdict(event) for event in store.history()],
        },
        table("Releases at this site", ("Release", "Stands", "Since", "Why"), rows),
        f"{store.active_id or 'The base model'} serves.",
        as_json=as_json,
    )


def activate(
    release: Annotated[str, typer.Argument(help="A release that is held here.", metavar="RELEASE")],
    home: Home = None,
    skip_canary: Annotated[
        bool, typer.Option("--skip-canary", help="Serve it whatever the canary set says.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve a release that was refused, rolled back or superseded here; never a withdrawn one."""
    from client_node.assembly import checked_releases
    from client_node.home import SiteSettings
    from client_node.keys import trusted_coordinator
    from client_node.release_duty import CanaryError
    from deploy.ledgers import open_ledger

    opened = _open(home)
    settings = SiteSettings.load(opened.settings)
    coordinator = trusted_coordinator(opened)
    checked = checked_releases(opened, settings, coordinator, settings.base_sha256)
    fields = {"release": release, "by": "operator"}
    ledger = open_ledger(opened.root)
    try:
        if skip_canary:
            checked.models.activate(release, by_operator=True)
        else:
            checked.activate(release, by_operator=True)
    except CanaryError as refusal:
        ledger.append("release.refused", fields | {"code": refusal.finding})
        raise
    ledger.append("release.activated", fields | {"canary_skipped": skip_canary})
    emit(
        {"release": release, "canary_skipped": skip_canary},
        f"{release} serves, from the next recording on.",
        as_json=as_json,
    )


def rollback(home: Home = None, as_json: Json = False) -> None:
    """Serve again what served before the active release."""
    from client_node.home import SiteSettings
    from client_node.serving import open_model_store
    from deploy.ledgers import open_ledger

    opened = _open(home)
    store = open_model_store(opened, SiteSettings.load(opened.settings))
    left, ledger = store.active_id, open_ledger(opened.root)
    restored = store.rollback()
    release = restored.manifest.release if restored else None
    ledger.append("release.rolled-back", {"release": left or "", "serves": release or "base"})
    emit(
        {"release": release},
        f"{release or 'The base model'} serves again, from the next recording on.",
        as_json=as_json,
    )


@canary.command("set", epilog="Example: auricle site canary set canary.jsonl --max-wer 0.3")
def set_(
    manifest: Annotated[Path, typer.Argument(help="A recordings manifest: audio, text, subject.")],
    max_wer: Annotated[
        float, typer.Option(min=0.001, help="Largest word error rate of a release that serves.")
    ] = 1.0,
    margin: Annotated[
        float, typer.Option(min=0.0, help="By how much it may exceed the present model's.")
    ] = 0.02,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Choose the recordings on which each release is tried before it serves."""
    from client_node.release_canary import CanarySet

    opened = _open(home)
    chosen = CanarySet.from_manifest(manifest, max_wer, margin)
    chosen.save(opened.canary)
    emit(
        {"recordings": len(chosen.recordings), "max_wer": max_wer, "margin": margin},
        f"{len(chosen.recordings)} recordings. A release serves with a word error rate of at most "
        f"{max_wer:g} and no more than {margin:g} above the present model's.",
        as_json=as_json,
    )


@canary.command("show", epilog="Example: auricle site canary show")
def show(home: Home = None, as_json: Json = False) -> None:
    """The canary set and its limits."""
    from client_node.release_canary import CanarySet

    chosen = CanarySet.load(_open(home).canary)
    rows = [(one.audio, one.text) for one in chosen.recordings] if chosen else []
    emit(
        {"canary": dataclasses.asdict(chosen) if chosen else None},
        table("Canary set", ("Recording", "Text"), rows),
        f"Largest word error rate {chosen.max_wer:g}, margin {chosen.margin:g}"
        if chosen
        else "No canary set: a release must only verify and fit the base.",
        as_json=as_json,
    )


@canary.command("clear", epilog="Example: auricle site canary clear")
def clear(home: Home = None, as_json: Json = False) -> None:
    """Try releases on nothing any more."""
    path = _open(home).canary
    had = path.exists()
    path.unlink(missing_ok=True)
    emit(
        {"cleared": had},
        "The canary set is gone." if had else "There was no canary set.",
        as_json=as_json,
    )
