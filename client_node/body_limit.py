"""Refuses a request whose body is too large before any of it is read."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


class BodyLimit:
    """ASGI middleware: a body must say its length, and may have at most `max_bytes`.

    The HTTP server holds a body to its Content-Length (RFC 9112 §6.3), so the header is enough;
    a body of undeclared length (chunked) is answered 411.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        """Wrap `app`."""
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 411 or 413 in OpenAI's error shape."""
        app = self._app if scope["type"] != "http" else self._judge(dict(scope["headers"]))
        await app(scope, receive, send)

    def _judge(self, headers: dict[bytes, bytes]) -> ASGIApp:
        if b"transfer-encoding" in headers:
            return _refusal(411, "the request must say its length", "length_required")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_bytes:
            megabytes = self._max_bytes // 2**20
            return _refusal(413, f"the file is larger than {megabytes} MB", "file_too_large")
        return self._app


def _refusal(status: int, message: str, code: str) -> JSONResponse:
    error = {
        "message": message,
        "type": "invalid_request_error",
        "param": "file",
        "code": code,
    }
    return JSONResponse({"error": error}, status_code=status)
