"""The dictation page's routes: fixed files, what it says of the site, and kept corrections.

The page loads nothing from elsewhere and runs no inline script; its Content-Security-Policy says
so.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response

from client_node.dictation.corrections import Corrections
from client_node.live.websocket import is_own_page
from client_node.status import SiteStatus
from privacy.errors import AuricleError

_SCRIPT, _STYLE = "text/javascript; charset=utf-8", "text/css; charset=utf-8"
_ASSETS = {
    "dictation.js": _SCRIPT,
    "audio.js": _SCRIPT,
    "capture.js": _SCRIPT,
    "live.js": _SCRIPT,
    "passages.js": _SCRIPT,
    "strings.js": _SCRIPT,
    "style.css": _STYLE,
}
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def dictation_router(status: Callable[[], SiteStatus], corrections: Corrections) -> APIRouter:
    """The page at `/`, its files, and `POST /dictation/corrections`."""
    router = APIRouter()

    @router.get("/")
    def page() -> Response:
        return _asset("index.html", "text/html; charset=utf-8")

    @router.get("/dictation/state")
    def state() -> dict[str, Any]:
        site = status()
        last = site.receipts[0] if site.receipts else None
        return {
            "site": site.site,
            "release": None if site.release is None else site.release.release,
            "last_receipt": None
            if last is None
            else {
                "at": last.at,
                "kind": last.kind,
                "job": last.job,
                "round": last.round,
                "size_bytes": last.size_bytes,
                "sha256": last.sha256,
            },
        }

    @router.get("/dictation/{name}")
    def asset(name: str) -> Response:
        if name not in _ASSETS:
            return _refusal(404, "there is no such file", "not_found")
        return _asset(name, _ASSETS[name])

    _add_corrections(router, corrections)
    return router


def _add_corrections(router: APIRouter, corrections: Corrections) -> None:
    @router.post("/dictation/corrections")
    def keep(
        request: Request,
        *,
        file: Annotated[UploadFile, File()],
        text: Annotated[str, Form()],
        subject: Annotated[str, Form()],
        consent: Annotated[bool, Form()] = False,
    ) -> Response:
        if not is_own_page(request):
            return _refusal(403, "pages of other sites may not use this one", "cross_site")
        if not consent:
            return _refusal(400, "the person must have agreed", "consent-missing")
        try:
            report = corrections.keep(file.file, text, subject)
        except AuricleError as error:
            return _refusal(400, "the correction was not kept", error.code)
        return JSONResponse({"recordings": report.recordings, "new": report.new})


def _asset(name: str, media_type: str) -> Response:
    content = files("client_node.dictation").joinpath("static", name).read_bytes()
    return Response(content, media_type=media_type, headers=_HEADERS)


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": error}, status_code=status)
