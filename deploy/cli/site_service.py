"""`auricle site serve` and `auricle site token`: the HTTP service and who may use it."""

from __future__ import annotations

import contextlib
import dataclasses
import ipaddress
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli.homes import existing_site
from deploy.cli.output import Home, Json, emit, table
from deploy.errors import CommandError

if TYPE_CHECKING:
    from client_node.api_tokens import TokenBook
    from client_node.home import SiteHome

MEBIBYTE = 2**20
tokens_app = typer.Typer(help="Who may use this site's HTTP service.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add the commands to `auricle site`."""
    app.command(epilog="Example: auricle site serve --port 8080")(serve)
    app.add_typer(tokens_app, name="token")


def serve(
    home: Home = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    model_name: Annotated[
        list[str] | None,
        typer.Option(help="A further name for the model, such as whisper-1; may be repeated."),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, max=4096, help="Largest file, in MiB.")] = 25,
    max_recordings: Annotated[
        int, typer.Option(min=1, max=512, help="Recordings in hand at once; more are put off.")
    ] = 64,
    int8: Annotated[bool, typer.Option("--int8", help="Compute in INT8: faster.")] = False,
    grpc_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port for gRPC streaming as well.")
    ] = None,
    grpc_certificate: Annotated[
        Path | None, typer.Option(help="PEM certificate of gRPC; without it loopback only.")
    ] = None,
    grpc_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    grpc_client_ca: Annotated[
        Path | None, typer.Option(help="Who signs clients' certificates: mutual TLS.")
    ] = None,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Port on loopback for Prometheus; without it, none."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve dictation, streaming and the OpenAI audio API until Ctrl-C, in this building only."""
    import uvicorn

    from client_node.api import LOCAL_HOSTS, ServiceLimits, make_app
    from client_node.batcher import Batcher
    from client_node.decoding.decoder import RecordingDecoder
    from client_node.dictation.assembly import dictation_routers
    from client_node.http.server import server_config
    from client_node.live.rpc.server import RpcSettings
    from client_node.recogniser import Recogniser
    from client_node.serving import open_transcriber
    from client_node.serving_metrics import LOOPBACK, MeteredTranscribing, ServingMetrics
    from client_node.status import collect_status
    from deploy.doctor import check_port

    opened = _open(home)
    access = _token_book(opened)
    if access.is_open() and not _is_loopback(host):
        raise CommandError(
            f"{host} can be reached from other machines, and nobody needs a token yet",
            remedy="make one with `auricle site token create NAME`, or serve on 127.0.0.1",
            code="token-missing",
        )
    rpc = None
    if grpc_port is not None:
        rpc = RpcSettings(host, grpc_port, grpc_certificate, grpc_key, grpc_client_ca)
    wanted = [(port, host), *([] if metrics_port is None else [(metrics_port, LOOPBACK)])]
    for free in (check_port(*one) for one in wanted):
        if not free.ok:
            raise CommandError(free.problem, remedy=free.remedy, code="port-in-use")
    serving = open_transcriber(opened, precision="int8" if int8 else "float32")
    recogniser = Recogniser(serving, RecordingDecoder(), Batcher())
    recogniser.warm_up()
    metrics = ServingMetrics()
    made = make_app(
        MeteredTranscribing(recogniser, metrics),
        lambda: collect_status(opened),
        (*LOCAL_HOSTS, host),
        routers=dictation_routers(opened, serving, access, rpc),
        access=access,
        aliases=model_name or (),
        limits=ServiceLimits(max_upload_mb * MEBIBYTE, max_recordings),
    )
    url = f"http://{host}:{port}"
    with contextlib.ExitStack() as stack:
        if metrics_port is not None:
            stack.callback(metrics.serve(metrics_port))
        emit({"url": url}, f"Page and API on {url}; Ctrl-C stops.", as_json=as_json)
        # uvicorn raises the signal that stopped it again; a supervisor's SIGTERM is no failure.
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)
        stack.enter_context(contextlib.suppress(KeyboardInterrupt))
        stack.enter_context(contextlib.closing(recogniser))
        uvicorn.Server(server_config(made, host, port)).run()


@tokens_app.command("create", epilog="Example: auricle site token create ward-3 --scope transcribe")
def create_token(
    name: Annotated[str, typer.Argument(help="Who will use it; names are never used twice.")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="transcribe (the API) or page; may be repeated. Without it: transcribe."),
    ] = None,
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Make a token and show it once. From the first one on, every request needs one."""
    token = _token_book(_open(home)).create(name, scope or ["transcribe"])
    emit(
        {"name": name, "token": token},
        token,
        "It is shown this once; only its hash is kept. Every request needs a token from now on.",
        as_json=as_json,
    )


@tokens_app.command("list", epilog="Example: auricle site token list --json")
def list_tokens(home: Home = None, as_json: Json = False) -> None:
    """Names, scopes and dates of all tokens ever made."""
    tokens = _token_book(_open(home)).tokens()
    rows = [
        (one.name, ", ".join(one.scopes), one.created_at, one.revoked_at or "-") for one in tokens
    ]
    emit(
        {"tokens": [dataclasses.asdict(one) for one in tokens]},
        table("Tokens", ("Name", "Scopes", "Made", "Revoked"), rows)
        if rows
        else "No token was ever made: whoever reaches this service may use it.",
        as_json=as_json,
    )


@tokens_app.command("revoke", epilog="Example: auricle site token revoke ward-3")
def revoke_token(
    name: Annotated[str, typer.Argument(help="The token's name.")],
    home: Home = None,
    as_json: Json = False,
) -> None:
    """Refuse a token from the next request on, also while the service runs."""
    _token_book(_open(home)).revoke(name)
    emit({"name": name}, f"{name} is refused from now on.", as_json=as_json)


def _open(home: Path | None) -> SiteHome:
    from client_node.home import SiteHome

    return SiteHome(existing_site(home))


def _token_book(home: SiteHome) -> TokenBook:
    from client_node.api_tokens import TokenBook
    from client_node.assembly import utc_now
    from privacy.store import open_engine

    return TokenBook(open_engine(home.database_url), utc_now)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
