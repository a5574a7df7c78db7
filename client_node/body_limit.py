"""Refuses a body that is too large, before any of it is read, and one that comes too slowly."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client_node.http.errors import ApiError

IDLE_S = 20.0
_LEAST_RATE = 16 * 1024  # bytes a second, over the whole body
_GRACE_S = 30.0


class BodyLimit:
    """ASGI middleware: a body must say its length, have at most `max_bytes`, and keep coming.

    The HTTP server holds a body to its Content-Length (RFC 9112 §6.3), so the header is enough;
    a body of undeclared length (chunked) is answered 411. A sender that pauses for `idle_s`, or
    stays below 16 KiB/s after the first 30 s, is answered 408.
    """

    def __init__(self, app: ASGIApp, max_bytes: int, idle_s: float = IDLE_S) -> None:
        """Wrap `app`."""
        self._app = app
        self._max_bytes = max_bytes
        self._idle_s = idle_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 408, 411 or 413 in OpenAI's error shape."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        refusal = self._judge(headers)
        if refusal is not None:
            await refusal.response()(scope, receive, send)
            return
        length = int(headers.get(b"content-length", b"0"))
        if length == 0:
            await self._app(scope, receive, send)
            return
        await self._patiently(length, scope, receive, send)

    def _judge(self, headers: dict[bytes, bytes]) -> ApiError | None:
        if b"transfer-encoding" in headers:
            message = "the request must say its length"
            return ApiError(411, message, code="length_required", param="file")
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or int(declared) > self._max_bytes:
            message = f"the file is larger than {self._max_bytes // 2**20} MB; send it in parts"
            return ApiError(413, message, code="file_too_large", param="file")
        return None

    async def _patiently(self, length: int, scope: Scope, receive: Receive, send: Send) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _GRACE_S + length / _LEAST_RATE
        state = {"arrived": False, "too_slow": False}

        async def hurried() -> Message:
            if state["arrived"]:
                return await receive()
            try:
                async with asyncio.timeout_at(min(deadline, loop.time() + self._idle_s)):
                    message = await receive()
            except TimeoutError:
                state["too_slow"] = True
                return {"type": "http.disconnect"}  # what the app makes of it is not sent
            state["arrived"] = not message.get("more_body", False)
            return message

        async def unless_too_slow(message: Message) -> None:
            if not state["too_slow"]:
                await send(message)

        try:
            await self._app(scope, hurried, unless_too_slow)
        except Exception:
            if not state["too_slow"]:  # else it is what the app makes of half a body
                raise
        if state["too_slow"]:
            refusal = ApiError(408, "the request came too slowly", code="request_timeout")
            await refusal.response()(scope, receive, send)
