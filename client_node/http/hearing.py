"""Bridges the event loop and the threads that hear recordings.

Recordings have threads of their own, so that health, pages and other services never wait behind
them. One thread owns a recording from its file to its last segment; a client that leaves stops it
at the next segment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, BinaryIO, Protocol, TypeVar

from fastapi import Request, UploadFile

from client_node.http.errors import ApiError
from client_node.recogniser import Asked, Heard
from model_core.transcribe import Segment

T = TypeVar("T")
_CLIENT_GONE = 499  # as nginx logs it; nobody is there to read it


class Listening(Protocol):
    """What is needed of `client_node.recogniser.Recogniser`."""

    def listen(self, recording: BinaryIO, asked: Asked) -> AbstractContextManager[Heard]:
        """Decode a recording and begin to hear it."""


class _End:
    """Says that no segment comes after."""


_Item = Heard | Segment | _End | Exception


class HearingDesk:
    """Hears at most `most` recordings at once."""

    def __init__(self, listening: Listening, most: int) -> None:
        self._listening = listening
        self._threads = ThreadPoolExecutor(most, thread_name_prefix="auricle-hearing")

    @contextlib.asynccontextmanager
    async def listen(
        self, upload: UploadFile, asked: Asked
    ) -> AsyncIterator[tuple[Heard, AsyncIterator[Segment]]]:
        """What is heard, once decoding has succeeded, and its segments as they come.

        Raises what `Recogniser.listen` raises; so does the iterator.
        """
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[_Item] = asyncio.Queue()
        gone = threading.Event()

        def tell(item: _Item) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        upload.file.flush()
        recording = os.fdopen(os.dup(upload.file.fileno()), "rb")
        self._threads.submit(_hear, self._listening, recording, asked, gone, tell)
        try:
            first = await items.get()
            if isinstance(first, Exception):
                raise first
            assert isinstance(first, Heard)
            yield first, _segments(items)
        finally:
            gone.set()

    def close(self) -> None:
        """Start no further recording."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _hear(
    listening: Listening,
    recording: BinaryIO,
    asked: Asked,
    gone: threading.Event,
    tell: Callable[[_Item], None],
) -> None:
    """In a thread: tell what is heard, its segments, and the end or the fault."""
    try:
        with recording:
            if gone.is_set():
                return
            with listening.listen(recording, asked) as heard:
                tell(heard)
                for segment in heard.segments:
                    if gone.is_set():
                        return
                    tell(segment)
        tell(_End())
    except Exception as error:  # noqa: BLE001 raised again in the event loop
        tell(error)


async def _segments(items: asyncio.Queue[_Item]) -> AsyncIterator[Segment]:
    while True:
        item = await items.get()
        if isinstance(item, Exception):
            raise item
        if not isinstance(item, Segment):
            return
        yield item


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled when the client leaves. Raises ApiError then."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_leaves(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ApiError(_CLIENT_GONE, "the client has left")
    finally:
        working.cancel()
        leaving.cancel()


async def _leaves(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
