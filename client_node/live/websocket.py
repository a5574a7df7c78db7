"""Live transcription over a WebSocket (RFC 6455) at /v1/audio/stream.

The client sends one opening as JSON, audio as binary messages, and `finish`; it gets events as
JSON. A browser cannot set headers on a WebSocket, so a token may also come as the subprotocol
`auricle.bearer.TOKEN`, beside `auricle.live`, which the service answers with. A browser names the
page that opened the socket (Origin): only pages of this very service may, or any web page could
listen in.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect

from client_node.live.errors import LiveError
from client_node.live.messages import error_json, event_json, read_finish, read_start
from client_node.live.service import LiveService, LiveStream
from model_core.errors import ModelCoreError
from privacy.errors import AuricleError

PATH = "/v1/audio/stream"
SUBPROTOCOL = "auricle.live"
_TOKEN_PREFIX = "auricle.bearer."  # noqa: S105 - what stands before a token
_EXPIRY_EVERY_S = 1.0
_FAREWELL_S = 5.0
_POLICY_VIOLATION, _INTERNAL_ERROR, _TRY_AGAIN = 1008, 1011, 1013

Authorise = Callable[[str | None], bool]
"""Whether a bearer token, or none, may transcribe."""


def live_router(service: LiveService, authorise: Authorise) -> APIRouter:
    """The route, and while the application runs, the end of idle streams."""

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        expiry = asyncio.create_task(_expire_for_ever(service))
        yield
        expiry.cancel()
        service.close()

    router = APIRouter(lifespan=lifespan)

    @router.websocket(PATH)
    async def stream(socket: WebSocket) -> None:
        if not is_own_page(socket) or not authorise(_token(socket)):
            await socket.close(_POLICY_VIOLATION)  # before it is accepted: HTTP 403
            return
        offered = _subprotocols(socket)
        await socket.accept(SUBPROTOCOL if SUBPROTOCOL in offered else None)
        with contextlib.suppress(WebSocketDisconnect):
            await _serve(service, socket)

    return router


def is_own_page(socket: WebSocket) -> bool:
    """Whether the opener is no browser, or a page that this very host served."""
    origin = socket.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == socket.headers.get("host")


def _token(socket: WebSocket) -> str | None:
    kind, _, token = socket.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and token:
        return token
    offered = (name for name in _subprotocols(socket) if name.startswith(_TOKEN_PREFIX))
    return next((name.removeprefix(_TOKEN_PREFIX) for name in offered), None)


def _subprotocols(socket: WebSocket) -> list[str]:
    """Subprotocols that the client offers; uvicorn may leave a header's list as one text."""
    offered = ",".join(socket.scope.get("subprotocols", []))
    return [name.strip() for name in offered.split(",")]


async def _serve(service: LiveService, socket: WebSocket) -> None:
    stream: LiveStream | None = None
    try:
        stream = await service.open(read_start(await _first_message(service, socket)))
        await socket.send_json({"type": "ready"})
        await _converse(socket, stream)
        await socket.send_json({"type": "done"})
        await socket.close()
    except (AuricleError, ModelCoreError) as error:
        await _refuse(socket, error)
    except WebSocketDisconnect:
        raise
    except Exception:
        await socket.send_json(error_json("internal", "the service failed; no audio was kept"))
        await socket.close(_INTERNAL_ERROR)
        raise
    finally:
        if stream is not None:
            stream.close()


async def _converse(socket: WebSocket, stream: LiveStream) -> None:
    """Take audio and send events until the stream's end; what fails first ends it all."""

    async def both() -> None:
        await asyncio.gather(_listen(socket, stream), _tell(socket, stream))

    tasks = {asyncio.create_task(each) for each in (both(), stream.failure())}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            await task
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _listen(socket: WebSocket, stream: LiveStream) -> None:
    while True:
        message = await socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1000))
        if message.get("bytes") is not None:
            await stream.push(message["bytes"])
        else:
            read_finish(message.get("text") or "")
            await stream.finish()
            return


async def _tell(socket: WebSocket, stream: LiveStream) -> None:
    async for event in stream.events():
        await socket.send_json(event_json(event))


async def _refuse(socket: WebSocket, error: AuricleError | ModelCoreError) -> None:
    if isinstance(error, LiveError):
        message = f"{error.problem}: {error.remedy}"
        status = _TRY_AGAIN if error.code == "stream-busy" else _POLICY_VIOLATION
    else:
        message = "this site cannot serve now; its operator should run `auricle site status`"
        status = _INTERNAL_ERROR
    # A peer that takes nothing any more is left to the server, which cuts the connection.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await socket.send_json(error_json(error.code, message))
            await socket.close(status)


async def _first_message(service: LiveService, socket: WebSocket) -> str:
    try:
        message = await asyncio.wait_for(socket.receive(), service.limits.idle_s)
    except TimeoutError:
        raise LiveError("no opening came", remedy="send one at once", code="stream-idle") from None
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message.get("code", 1000))
    return message.get("text") or ""


async def _expire_for_ever(service: LiveService) -> None:
    while True:
        await asyncio.sleep(_EXPIRY_EVERY_S)
        service.expire()
