"""A TLS proxy that a test puts between a site and the coordinator to record the plain wire.

It holds a server certificate made by the federation's own CA (the test owns the CA key), so the
site accepts it, and it speaks TLS on to the coordinator. What it keeps is what an adversary who
broke TLS would read, each connection by itself: mixed, a payload would be cut by its neighbours.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


@dataclasses.dataclass(frozen=True)
class Conversation:
    """The plain bytes of one connection, from the site and to it."""

    sent: bytearray = dataclasses.field(default_factory=bytearray)
    received: bytearray = dataclasses.field(default_factory=bytearray)


class RecordingProxy:
    """Context manager; `port` is where sites connect, `conversations` what they said."""

    def __init__(self, upstream_port: int, certificate: Path, key: Path, ca: Path) -> None:
        self._upstream_port = upstream_port
        self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server_tls.load_cert_chain(certificate, key)
        self._client_tls = ssl.create_default_context(cafile=str(ca))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._marker = b""
        self._let_by = 0
        self._passable = asyncio.Event()
        self._passable.set()
        self.conversations: list[Conversation] = []
        self.held = threading.Event()
        """Set once a request has been held back."""
        self.port = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def hold(self, marker: bytes, *, let_by: int) -> None:
        """Keep back requests that begin with `marker`, until `let_go`; the site just waits.

        The first `let_by` of them still pass.
        """
        self._marker, self._let_by = marker, let_by
        self._loop.call_soon_threadsafe(self._passable.clear)

    def let_go(self) -> None:
        """Forward what was held, and everything from here on."""
        self._marker = b""
        self._loop.call_soon_threadsafe(self._passable.set)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(
            self._serve, "127.0.0.1", 0, ssl=self._server_tls, ssl_handshake_timeout=10
        )

    async def _close(self) -> None:
        self._server.close()
        tasks = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(
                "127.0.0.1", self._upstream_port, ssl=self._client_tls
            )
        except OSError:
            writer.close()
            return
        conversation = Conversation()
        self.conversations.append(conversation)
        await asyncio.gather(
            self._pump(reader, upstream_writer, conversation.sent),
            self._pump(upstream_reader, writer, conversation.received),
        )

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
            while chunk := await reader.read(CHUNK_BYTES):
                record += chunk
                if self._marker and chunk.startswith(self._marker):
                    self._let_by -= 1
                    if self._let_by < 0:
                        self.held.set()
                        await self._passable.wait()
                writer.write(chunk)
                await writer.drain()
        with contextlib.suppress(OSError, ssl.SSLError, RuntimeError):
            writer.close()
