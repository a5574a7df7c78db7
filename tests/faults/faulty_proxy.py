"""A proxy before one site whose network is cut, black-holed or slow on order."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

from tests.e2e.recording_proxy import RecordingProxy


class FaultyProxy(RecordingProxy):
    """As `RecordingProxy`; `mend` ends what `cut`, `swallow` and `throttle` began."""

    def __init__(self, upstream_port: int, certificate: Path, key: Path, ca: Path) -> None:
        super().__init__(upstream_port, certificate, key, ca)
        self._open: set[asyncio.StreamWriter] = set()
        self._down = False
        self.swallowing = False
        self.rate_bytes_s = 0.0
        self.swallowed = threading.Event()
        """Set once something has disappeared."""

    def cut(self) -> None:
        """Reset every connection, and every new one at once."""
        self._down = True
        self._loop.call_soon_threadsafe(self._reset)

    def swallow(self) -> None:
        """Let what is sent disappear, both ways, with no word to anybody.

        A connection that has lost something stays so for good: nobody ever closes it.
        """
        self.swallowing = True

    def throttle(self, rate_bytes_s: float) -> None:
        """Let through so many bytes a second on each connection, each way."""
        self.rate_bytes_s = rate_bytes_s

    def mend(self) -> None:
        """What is sent from here on arrives, at once."""
        self._down = self.swallowing = False
        self.rate_bytes_s = 0.0

    def _reset(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._down:
            writer.transport.abort()
            return
        self._open.add(writer)
        try:
            await super()._serve(reader, writer)
        finally:
            self._open.discard(writer)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        await super()._pump(_FaultyReader(reader, self), writer, record)  # type: ignore[arg-type]


class _FaultyReader:
    """What arrives through a bad network."""

    def __init__(self, reader: asyncio.StreamReader, network: FaultyProxy) -> None:
        self._reader = reader
        self._network = network
        self._black = False

    async def read(self, size_bytes: int) -> bytes:
        while chunk := await self._reader.read(size_bytes):
            self._black = self._black or self._network.swallowing
            if not self._black:
                if rate := self._network.rate_bytes_s:
                    await asyncio.sleep(len(chunk) / rate)
                return chunk
            self._network.swallowed.set()
        return b""
