"""Listeners: which paths are served where, and the servers that serve them."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.errors import CoordinatorError

STOP_GRACE_S = 5
BACKLOG = 256
START_POLL_S = 0.02
MOST_CONNECTIONS = 1_000  # each may hold a body of the largest size while it is read


@dataclasses.dataclass(frozen=True)
class Mount:
    """An app under a path, or under every path beneath it if it ends in a slash."""

    path: str
    app: ASGIApp
    max_body_bytes: int

    def serves(self, path: str) -> bool:
        """Whether a request for `path` belongs here."""
        return path.startswith(self.path) if self.path.endswith("/") else path == self.path


class OnlyPaths:
    """ASGI app that serves the mounts and answers 404 to all else, before any app sees it.

    A request body over its mount's limit is cut off with 413, whatever length it announced.
    `lifespan` is the app whose start and stop belong to this listener.
    """

    def __init__(self, mounts: Sequence[Mount], lifespan: ASGIApp) -> None:
        self._mounts = mounts
        self._lifespan = lifespan

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection's scope."""
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
            return
        mount = next((m for m in self._mounts if m.serves(scope.get("path", ""))), None)
        if scope["type"] != "http" or mount is None:
            await _refuse(scope, send, 404)
            return
        if _announced_bytes(scope) > mount.max_body_bytes:
            await _refuse(scope, send, 413)
            return
        await mount.app(scope, _limited(receive, mount.max_body_bytes), send)


def _announced_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


def _limited(receive: Receive, limit_bytes: int) -> Receive:
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        # A chunked body that grows past the limit looks to the app like a client that went away.
        return {"type": "http.disconnect"} if taken > limit_bytes else message

    return limited


async def _refuse(scope: Scope, send: Send, status: int) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": b""})


class Listener:
    """One uvicorn server in a thread of its own. The port is bound when it is made."""

    def __init__(
        self, app: ASGIApp, host: str, port: int, tls: tuple[Path, Path] | None = None
    ) -> None:
        """`tls` is (certificate, key). Raises CoordinatorError "port-in-use"."""
        self._socket = _bind(host, port)
        security: dict[str, Any] = {}
        if tls is not None:
            security = {"ssl_certfile": str(tls[0]), "ssl_keyfile": str(tls[1])}
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            ws="none",
            limit_concurrency=MOST_CONNECTIONS,
            timeout_graceful_shutdown=STOP_GRACE_S,
            **security,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve, name=f"listener-{self.port}")

    @property
    def port(self) -> int:
        """The port really bound."""
        return int(self._socket.getsockname()[1])

    def start(self) -> None:
        """Serve; connections made since binding have waited in the socket's queue.

        Raises CoordinatorError "listener-failed" where the app does not start.
        """
        self._thread.start()
        while not self._server.started:
            self._thread.join(START_POLL_S)
            if not self._thread.is_alive():
                raise CoordinatorError(
                    f"the listener on port {self.port} did not start",
                    remedy="look into the log for what its app raised",
                    code="listener-failed",
                )

    def stop(self) -> None:
        """Finish what is being served and close."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        self._server.run(sockets=[self._socket])


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(BACKLOG)
    except OSError as error:
        bound.close()
        raise CoordinatorError(
            f"port {port} on {host} cannot be used: {error.strerror}",
            remedy="stop the program that uses it, or set another port in coordinator.toml",
            code="port-in-use",
        ) from error
    return bound
