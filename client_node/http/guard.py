"""Who may ask, and how many at once: tokens, foreign pages, a bound on recordings in hand.

Plain ASGI, outside the application, so that it holds for every router and before any body is read.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Literal, Protocol

from fastapi.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from client_node.http.errors import ApiError

Scopes = frozenset[str]
Need = Literal["transcribe", "page"]
RETRY_AFTER_S = 1
_OPEN_PATHS = frozenset({"/health"})
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_BASIC = 'Basic realm="Auricle", charset="UTF-8"'


class Access(Protocol):
    """What the guard needs of `client_node.api_tokens.TokenBook`."""

    def is_open(self) -> bool:
        """Whether nobody needs a token."""

    def scopes_of(self, token: str) -> Scopes | None:
        """What a token allows; None for one that is unknown or revoked."""


class TokenGuard:
    """ASGI middleware: every path but /health needs a token with the scope that it asks for.

    `Authorization: Bearer TOKEN`, or HTTP Basic with the token as password, which is how a browser
    asks for it: the page then works as it does without tokens. Since a browser sends Basic by
    itself, a page of another site must not be able to post here: Fetch metadata tells.
    """

    def __init__(self, app: ASGIApp, access: Access, need: Callable[[str], Need]) -> None:
        """Wrap `app`; `need` says which scope a path asks for."""
        self._app, self._access, self._need = app, access, need

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it: 401 or 403; a WebSocket is closed with 403."""
        refusal = None
        if scope["type"] in ("http", "websocket"):
            refusal = await run_in_threadpool(self._judge, scope)
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(refusal, scope, receive, send)

    def _judge(self, scope: Scope) -> ApiError | None:
        headers = Headers(scope=scope)
        changes = scope["type"] == "websocket" or scope["method"] not in _SAFE_METHODS
        if changes and headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return ApiError(403, "pages of other sites may not use this one", code="cross_site")
        if scope["path"] in _OPEN_PATHS or self._access.is_open():
            return None
        need = self._need(scope["path"])
        token = _token(headers.get("authorization", ""))
        allowed = self._access.scopes_of(token) if token else None
        if allowed is None:
            return _unauthorised(token, need)
        if need not in allowed:
            message = (
                f"You have insufficient permissions for this operation. Missing scopes: {need}."
            )
            return ApiError(403, message, code="missing_scope")
        return None


class Admission:
    """ASGI middleware: at most `most` recordings are in hand, the rest are answered 503 unread.

    OpenAI's clients wait as `Retry-After` says and try again.
    """

    def __init__(self, app: ASGIApp, most: int, prefix: str) -> None:
        """Wrap `app`; POSTs to paths that begin with `prefix` are counted."""
        self._app, self._most, self._prefix = app, most, prefix
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 503."""
        counted = (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and scope["path"].startswith(self._prefix)
        )
        if not counted:
            await self._app(scope, receive, send)
            return
        if self._in_hand >= self._most:
            refusal = ApiError(
                503,
                "the service is overloaded; try again soon",
                code="overloaded",
                headers={"Retry-After": str(RETRY_AFTER_S)},
            )
            await refusal.response()(scope, receive, send)
            return
        self._in_hand += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._in_hand -= 1


def _token(authorization: str) -> str:
    """The token of a Bearer or Basic header (RFC 6750, RFC 7617); "" for anything else."""
    kind, _, value = authorization.partition(" ")
    if kind.lower() == "bearer":
        return value.strip()
    if kind.lower() != "basic":
        return ""
    try:
        return base64.b64decode(value, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _unauthorised(token: str, need: Need) -> ApiError:
    # Only a page's visitor is a browser that should ask its user.
    headers = {"WWW-Authenticate": _BASIC if need == "page" else "Bearer"}
    if token:
        message = "Incorrect API key provided; ask this site's operator for a token."
        return ApiError(401, message, code="invalid_api_key", headers=headers)
    message = "You didn't provide an API key: send it as `Authorization: Bearer TOKEN`."
    return ApiError(401, message, headers=headers)


async def _refuse(refusal: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()  # the connection's opening
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    await refusal.response()(scope, receive, send)
