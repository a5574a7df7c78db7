"""A TLS proxy that a test puts between a site and the coordinator to record the plain wire.

It holds a server certificate made by the federation's own CA (the test owns the CA key), so the
site accepts it, and it speaks TLS on to the coordinator. What it keeps is what an adversary who
broke TLS would read.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

CHUNK_BYTES = 65536


class RecordingProxy:
    """Context manager; `port` is where sites connect, `sent` and `received` are plain bytes."""

    def __init__(self, upstream_port: int, certificate: Path, key: Path, ca: Path) -> None:
        self._upstream_port = upstream_port
        self._server_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server_tls.load_cert_chain(certificate, key)
        self._client_tls = ssl.create_default_context(cafile=str(ca))
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.sent = bytearray()
        self.received = bytearray()
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
        await asyncio.gather(
            _pump(reader, upstream_writer, self.sent),
            _pump(upstream_reader, writer, self.received),
        )


async def _pump(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
) -> None:
    with contextlib.suppress(OSError, ssl.SSLError, asyncio.IncompleteReadError):
        while chunk := await reader.read(CHUNK_BYTES):
            record += chunk
            writer.write(chunk)
            await writer.drain()
    with contextlib.suppress(OSError, ssl.SSLError, RuntimeError):
        writer.close()
