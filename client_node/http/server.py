"""uvicorn with patience that ends: a connection that asks nothing does not stay for ever."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 30.0
_MOST_FILES = 65_536
_BACKLOG = 2048
_LARGEST_MESSAGE_BYTES = 1024 * 1024  # of a WebSocket; the service itself takes less


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 protocol, which closes a connection whose next request does not come.

    uvicorn's own limit begins after an answer; here one that never sends a whole request head is
    closed too, after `IDLE_S` to twice that.
    """

    idle_s = IDLE_S
    _watch: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to watch."""
        super().connection_made(transport)
        self._look_later()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._stop_watching()
        super().connection_lost(exc)

    def handle_websocket_upgrade(self, event: Any) -> None:
        """The connection is another protocol's from here on."""
        self._stop_watching()
        super().handle_websocket_upgrade(event)

    def _look_later(self) -> None:
        seen = cast(object, self.cycle)
        self._watch = self.loop.call_later(self.idle_s, self._look, seen)

    def _look(self, seen: object) -> None:
        cycle = self.cycle
        # uvicorn types `cycle` as always set; it is None before the first request.
        is_idle = not cycle or cycle.response_complete
        if cycle is seen and is_idle:
            self.transport.close()
        else:
            self._look_later()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None


def server_config(app: Any, host: str, port: int) -> uvicorn.Config:
    """How a site serves: patient, quiet, and with room for thousands of connections."""
    _allow_many_files()
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        http=PatientProtocol,
        ws="websockets-sansio",  # "auto" takes an implementation that websockets deprecates
        ws_max_size=_LARGEST_MESSAGE_BYTES,
        ws_per_message_deflate=False,  # 33 kB of it can be 32 MB of audio
        backlog=_BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
    )


def _allow_many_files() -> None:
    """Each connection is an open file, and the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
