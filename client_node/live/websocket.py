"""Live transcription over a WebSocket (RFC 6455) at /v1/audio/stream.

The client sends one opening as JSON, audio as binary messages, and `finish`; it gets events as
JSON. Tokens and host names are judged before, as for every route. A browser names the page that
opened the socket (Origin): only pages of this very service may, or any web page could listen in.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter, WebSocket
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocketDisconnect

from client_node.live.errors import LiveError
from client_node.live.messages import error_json, event_json, read_finish, read_start
from client_node.live.service import LiveService, LiveStream
from model_core.errors import ModelCoreError
from privacy.errors import AuricleError

_LOG = logging.getLogger(__name__)
PATH = "/v1/audio/stream"
_EXPIRY_EVERY_S = 1.0
_FAREWELL_S = 5.0
_POLICY_VIOLATION, _INTERNAL_ERROR, _TRY_AGAIN = 1008, 1011, 1013


def live_router(service: LiveService) -> APIRouter:
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
        if not is_own_page(socket):
            await socket.close(_POLICY_VIOLATION)  # before it is accepted: HTTP 403
            return
        await socket.accept()
        with contextlib.suppress(WebSocketDisconnect):
            await _serve(service, socket)

    return router


def is_own_page(connection: HTTPConnection) -> bool:
    """Whether the asker is no browser, or a page that this very host served."""
    origin = connection.headers.get("origin")
    return origin is None or urlsplit(origin).netloc == connection.headers.get("host")


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
    except Exception as error:  # noqa: BLE001 - its text may hold what was said: only its kind is told
        _LOG.error("a live stream failed: %s", type(error).__name__)
        await _farewell(socket, error_json("internal", "the service failed"), _INTERNAL_ERROR)
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
    await _farewell(socket, error_json(error.code, message), status)


async def _farewell(socket: WebSocket, message: dict[str, Any], status: int) -> None:
    """Say why, and close; a peer that takes nothing any more is left to the server, which cuts."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_FAREWELL_S):
            await socket.send_json(message)
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
