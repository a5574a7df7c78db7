"""The site's HTTP service, for this building only: OpenAI's audio API, one page, further routers.

Errors have OpenAI's shape, so that its clients work by changing a base URL (`client_node.http`).
What a client asks for and this service cannot do is refused, never ignored. Host names are checked,
so that a web page elsewhere cannot reach the service by rebinding its own name to this address.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import secrets
from collections.abc import AsyncIterator, Callable, Sequence

from fastapi import APIRouter, FastAPI
from fastapi.responses import HTMLResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from client_node.body_limit import BodyLimit
from client_node.http.errors import add_error_handlers
from client_node.http.guard import Access, Admission, Need, TokenGuard
from client_node.http.hearing import HearingDesk
from client_node.http.routes import REFUSALS, Transcribing, audio_router
from client_node.page import render_page
from client_node.status import SiteStatus

FORM_OVERHEAD_BYTES = 64 * 1024  # field names, boundaries and the other fields of the form
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
AUDIO_PREFIX = "/v1/audio/"


@dataclasses.dataclass(frozen=True)
class ServiceLimits:
    """What the service takes on.

    Attributes:
        upload_bytes: largest file; OpenAI's own limit is 25 MB.
        recordings: recordings in hand at once, from the first byte to the answer's last.
    """

    upload_bytes: int = 25 * 1024 * 1024
    recordings: int = 64


def make_app(
    transcriber: Transcribing,
    status: Callable[[], SiteStatus],
    allowed_hosts: Sequence[str] = LOCAL_HOSTS,
    *,
    routers: Sequence[APIRouter] = (),
    access: Access | None = None,
    aliases: Sequence[str] = (),
    limits: ServiceLimits | None = None,
) -> FastAPI:
    """The site's service. `status` is asked at every view of the page.

    `routers` are further services of the site, such as streaming. What stands here for every
    route stands for theirs too: host names, tokens, body limit, errors in OpenAI's shape. A path
    that one of them serves is theirs, `/` included. `access` knows the tokens; without it none is
    needed. `aliases` are further names for the model, for clients that have one built in.
    """
    limits = limits or ServiceLimits()
    desk = HearingDesk(transcriber, limits.recordings)

    @contextlib.asynccontextmanager
    async def running(_: FastAPI) -> AsyncIterator[None]:
        yield
        desk.close()

    app = FastAPI(
        title="Auricle site", docs_url=None, redoc_url=None, lifespan=running, responses=REFUSALS
    )
    app.add_middleware(BodyLimit, max_bytes=limits.upload_bytes + FORM_OVERHEAD_BYTES)
    app.add_middleware(Admission, most=limits.recordings, prefix=AUDIO_PREFIX)
    if access is not None:
        app.add_middleware(TokenGuard, access=access, need=_need)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    owner = functools.cache(lambda: status().site)
    app.include_router(
        audio_router(transcriber, desk, owner, aliases=aliases, max_file_bytes=limits.upload_bytes)
    )
    _add_health_and_page(app, transcriber, status)
    return app


def _need(path: str) -> Need:
    return "transcribe" if path.startswith("/v1/") else "page"


def _add_health_and_page(
    app: FastAPI, transcriber: Transcribing, status: Callable[[], SiteStatus]
) -> None:
    @app.get("/health")
    def health() -> dict[str, str | None]:
        transcriber.warm_up()
        return {"status": "ok", "release": transcriber.release}

    @app.get("/", response_class=HTMLResponse)
    @app.get("/site", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return HTMLResponse(render_page(status(), nonce), headers=headers)
