"""`auricle round`: ask the running coordinator for a job of private rounds, and watch it."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import RenderableType
from rich.live import Live

from deploy.cli.homes import existing_coordinator
from deploy.cli.output import Home, Json, emit, epsilon_text, progress_console, table
from deploy.errors import CommandError

if TYPE_CHECKING:
    from deploy.cli.admin_client import AdminClient

app = typer.Typer(help="Private rounds of training over all sites.", no_args_is_help=True)

ENDED = ("released", "abandoned")
EXIT_ABANDONED = 43
WATCH_PERIOD_S = 1.0


@app.command(epilog="Example: auricle round start --rounds 40 --epsilon 8 --watch")
def start(
    home: Home = None,
    request: Annotated[
        Path | None, typer.Option(help="Job request file (TOML or JSON) over the defaults.")
    ] = None,
    purpose: Annotated[str | None, typer.Option(help="What the learning is for.")] = None,
    rounds: Annotated[int | None, typer.Option(help="T, number of rounds.")] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target ε_loc over all rounds.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option(help="σ, instead of a target ε.")
    ] = None,
    sampling_rate: Annotated[float | None, typer.Option(help="q, in (0, 1].")] = None,
    clipping_norm: Annotated[float | None, typer.Option(help="C.")] = None,
    delta: Annotated[float | None, typer.Option(help="δ; sites' policies name theirs.")] = None,
    expected_subjects: Annotated[
        int | None, typer.Option(help="Public N̄, subjects assumed per site.")
    ] = None,
    site: Annotated[
        list[str] | None, typer.Option(help="A site to ask, may be repeated; without it, all.")
    ] = None,
    quorum: Annotated[int | None, typer.Option(help="Fewest updates that make a round.")] = None,
    deadline_s: Annotated[float | None, typer.Option(help="Seconds a round may stay open.")] = None,
    secure_aggregation: Annotated[
        bool, typer.Option(help="Show the coordinator the sum over sites only.")
    ] = False,
    hold: Annotated[
        bool, typer.Option("--hold", help="Keep the release back until `auricle release publish`.")
    ] = False,
    honest_sites: Annotated[
        int | None,
        typer.Option(
            help="h for ε_sec: sites assumed honest; with secure aggregation, of a quorum."
        ),
    ] = None,
    update_encoding: Annotated[
        str | None, typer.Option(help="How updates are written: float32, bfloat16 or int8.")
    ] = None,
    base_folder: Annotated[
        Path | None, typer.Option(help="The prepared base; without it, the home's.")
    ] = None,
    watch: Annotated[bool, typer.Option(help="Stay and show progress until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Plan a job, sign the plan and start its rounds."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address
    from deploy.recipe import job_request

    root = existing_coordinator(home)
    options = {
        "purpose": purpose,
        "rounds": rounds,
        "epsilon": epsilon,
        "noise_multiplier": noise_multiplier,
        "sampling_rate": sampling_rate,
        "clipping_norm": clipping_norm,
        "delta": delta,
        "expected_subjects": expected_subjects,
        "sites": site,
        "quorum": quorum,
        "deadline_s": deadline_s,
        "privacy_mode": "secure-aggregation" if secure_aggregation else None,
        "hold": True if hold else None,
        "honest_sites": honest_sites,
        "update_encoding": update_encoding,
        "base_folder": str((base_folder or root / "base").absolute()),
    }
    fields = job_request(request, options)
    with AdminClient(*admin_address(root)) as admin:
        name = admin.post("/admin/jobs", fields)["job"]
        job = _look(admin, name, watch=watch, as_json=as_json)
    emit(job, _table(job), f"Watch it: auricle round status {name} --watch", as_json=as_json)
    _exit_by(job)


@app.command(epilog="Example: auricle round status --watch")
def status(
    job: Annotated[str | None, typer.Argument(help="The job; without it, the latest.")] = None,
    home: Home = None,
    watch: Annotated[bool, typer.Option(help="Stay and show progress until it ends.")] = False,
    as_json: Json = False,
) -> None:
    """Show a job: state, rounds, ε, sites. Exit status 43 when the job was abandoned."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        shown = _look(admin, job or _latest(admin), watch=watch, as_json=as_json)
    emit(shown, _table(shown), as_json=as_json)
    _exit_by(shown)


@app.command(epilog="Example: auricle round resume 9f86d081884c7d65")
def resume(
    job: Annotated[str, typer.Argument(help="The abandoned job.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Give an abandoned job another chance, from the round where it stopped."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        admin.post(f"/admin/jobs/{job}/resume", {})
        shown = admin.get(f"/admin/jobs/{job}")
    emit(shown, _table(shown), as_json=as_json)


def _latest(admin: AdminClient) -> str:
    jobs: list[str] = admin.get("/admin/jobs")
    if not jobs:
        raise CommandError(
            "no job was ever started here",
            remedy="start one with `auricle round start`",
            code="job-unknown",
        )
    return jobs[-1]


def _look(admin: AdminClient, job: str, *, watch: bool, as_json: bool) -> dict[str, Any]:
    """The job's status; with `watch`, asked every second until the job has ended."""
    shown: dict[str, Any] = admin.get(f"/admin/jobs/{job}")
    if not watch:
        return shown
    pause = threading.Event()
    screen = Live(console=progress_console(), transient=True)
    with contextlib.nullcontext() if as_json else screen:
        while shown["state"] not in ENDED:
            screen.update(_table(shown))
            pause.wait(WATCH_PERIOD_S)
            shown = admin.get(f"/admin/jobs/{job}")
    return shown


def _table(job: dict[str, Any]) -> RenderableType:
    rows = [
        (
            site["site"],
            "yes" if site["online"] else "no",
            site["plan_code"] or "-",
            str(site["updates_admitted"]),
            str(site["bytes_received"]),
            site["release_code"] or "-",
        )
        for site in job["sites"]
    ]
    title = (
        f"Job {job['job']} ({job['purpose']}): {job['state']}"
        f"{': ' + job['reason'] if job['reason'] else ''}, "
        f"round {job['rounds_done']} of {job['rounds']}, "
        f"ε {epsilon_text(job['epsilon_loc'])} trusting nobody, "
        f"{epsilon_text(job['epsilon_sec'])} if {job['honest_sites']} sites are honest and "
        f"updates are summed securely (δ = {job['delta']:g})"
    )
    columns = ("Site", "Online", "Plan", "Updates", "Bytes", "Release")
    return table(title, columns, rows)


def _exit_by(job: dict[str, Any]) -> None:
    if job["state"] == "abandoned":
        raise typer.Exit(EXIT_ABANDONED)
