"""`auricle release`: what the coordinator has trained: listed, shown, published, withdrawn."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.cli.homes import existing_coordinator
from deploy.cli.output import Home, Json, emit, epsilon_text, table

app = typer.Typer(
    help="Releases of the coordinator: history, publishing, withdrawal.", no_args_is_help=True
)
Release = Annotated[str, typer.Argument(help="The release's name, as listed.", metavar="RELEASE")]


@app.command("list", epilog="Example: auricle release list --json")
def list_(home: Home = None, as_json: Json = False) -> None:
    """Every release, oldest first, and which one sites should serve."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        listed = admin.get("/admin/releases")
    rows = [
        (
            one["release"],
            one["purpose"],
            "published, current" if one["current"] else one["state"],
            one["issued_at"],
            epsilon_text(one["epsilon_loc"]),
            f"{one['sites_ok']} ok, {one['sites_refused']} refused",
        )
        for one in listed
    ]
    columns = ("Release", "Purpose", "State", "Issued", "ε_loc", "Sites")
    emit({"releases": listed}, table("Releases", columns, rows), as_json=as_json)


@app.command(epilog="Example: auricle release show 0f1e2d3c-a1b2c3d4e5f6 --card")
def show(
    release: Release,
    home: Home = None,
    card: Annotated[bool, typer.Option("--card", help="Print the model card alone.")] = False,
    as_json: Json = False,
) -> None:
    """One release: signed manifest, parents, evaluation, history, and what each site answered."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        view = admin.get(f"/admin/releases/{release}")
    if card and not as_json:
        typer.echo(view["card"])
        return
    manifest = view["manifest"]
    facts = [(name, str(value)) for name, value in manifest.items() if name != "evaluation"]
    measured = (manifest.get("evaluation") or {"measured": []})["measured"]
    figures = [(one["metric"], f"{one['base']:.4f}", f"{one['release']:.4f}") for one in measured]
    life = [(_time(at_s), state, code or "-") for state, at_s, code in view["history"]]
    said = [(_time(one["at_s"]), one["site"], one["kind"], one["code"]) for one in view["answers"]]
    emit(
        view,
        table(f"{release}: {view['line']['state']}", ("Field", "Value"), facts),
        table("Public test set", ("Metric", "Base", "Release"), figures)
        if figures
        else "Nothing was measured before it was signed.",
        table("History", ("At", "State", "Reason"), life),
        table("Sites", ("At", "Site", "Asked", "Answer"), said),
        as_json=as_json,
    )


@app.command(
    epilog="Example: auricle release publish 0f1e2d3c-a1b2c3d4e5f6 --evaluate public.jsonl"
)
def publish(
    release: Release,
    home: Home = None,
    evaluate: Annotated[
        Path | None,
        typer.Option(help="Public recordings to measure base and release on first: audio, text."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a held release the one that sites serve; it is signed as of now."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        view = admin.get(f"/admin/releases/{release}")
        body: dict[str, Any] = {}
        if evaluate is not None:
            body["evaluation"] = _evaluation(
                evaluate, view, admin.get_bytes(f"/admin/releases/{release}/adapter")
            )
        admin.post(f"/admin/releases/{release}/publish", body)
        published = admin.get(f"/admin/releases/{release}")
    emit(
        published,
        f"{release} is published: sites take it when they are online and no job runs.",
        as_json=as_json,
    )


@app.command(
    epilog="Example: auricle release withdraw 0f1e2d3c-a1b2c3d4e5f6 --reason worse-on-numbers"
)
def withdraw(
    release: Release,
    reason: Annotated[str, typer.Option(help="Why, as a code: lower-case words and hyphens.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Take a release back for good: sites return to what served before it, when next online."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        admin.post(f"/admin/releases/{release}/withdraw", {"code": reason})
    emit(
        {"release": release, "state": "withdrawn", "code": reason},
        f"{release} is withdrawn; `auricle release show {release}` tells which sites know.",
        as_json=as_json,
    )


def _evaluation(manifest: Path, view: dict[str, Any], adapter: bytes) -> dict[str, Any]:
    from deploy.release_evaluation import evaluate_release

    return dataclasses.asdict(evaluate_release(manifest, Path(view["base_folder"]), adapter))


def _time(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).isoformat(timespec="seconds")
