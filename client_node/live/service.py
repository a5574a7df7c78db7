"""Drives many live streams: voice activity and decoding on worker threads, events to each listener.

Bounds of a stream: the size of a message, the seconds it may last, the seconds it may send nothing,
and how far the listener or the model may lag before audio has to wait. A stream that is silent
costs a few kilobytes, one that sends nothing costs no computing at all.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np

from client_node.live.errors import LiveError
from client_node.live.events import Ear, Ears, Event
from client_node.live.pcm import RATE_HZ, PcmReader
from client_node.live.session import Job, LiveSession, LiveSettings
from client_node.live.voice import Network

T = TypeVar("T")

_WAITING_EVENTS = 64
_MAX_TERMS = 200
_MAX_TERM_CHARACTERS = 100


@dataclasses.dataclass(frozen=True)
class LiveLimits:
    """What one stream, and all of them, may take.

    Attributes:
        streams: open at once.
        message_bytes: of audio in one message.
        idle_s: seconds without audio, or without the listener taking anything, that end a stream.
        stream_s: seconds of audio in one stream.
    """

    streams: int = 1024
    message_bytes: int = 256 * 1024
    idle_s: float = 60.0
    stream_s: float = 4 * 3600.0


@dataclasses.dataclass(frozen=True)
class Opening:
    """What a client says first: how its audio is written, and words to expect in it."""

    encoding: str = "s16le"
    rate_hz: int = RATE_HZ
    terms: tuple[str, ...] = ()


class LiveService:
    """Every live stream of a site. Belongs to one event loop."""

    def __init__(
        self,
        network: Network,
        ears: Ears,
        clock: Callable[[], float],
        *,
        settings: LiveSettings | None = None,
        limits: LiveLimits | None = None,
        workers: int = 2,
    ) -> None:
        """`clock` is monotonic seconds; `workers` decode side by side, each on one thread."""
        self.limits = limits or LiveLimits()
        self._network, self._ears, self._clock = network, ears, clock
        self._settings = settings or LiveSettings()
        self._streams: set[LiveStream] = set()
        self._voices = ThreadPoolExecutor(1, "live-voice")
        self._decoders = ThreadPoolExecutor(workers, "live-decode", initializer=_one_thread)

    @property
    def streams(self) -> int:
        """Streams open now."""
        return len(self._streams)

    async def open(self, opening: Opening) -> LiveStream:
        """A new stream. Raises LiveError: `stream-busy` and what the opening is refused for."""
        if len(self._streams) >= self.limits.streams:
            raise LiveError(
                "as many streams are open as this site allows",
                remedy="try again in a minute",
                code="stream-busy",
            )
        reader = PcmReader(opening.encoding, opening.rate_hz)
        _check_terms(opening.terms)
        listen = asyncio.get_running_loop().run_in_executor
        ear = await listen(self._decoders, self._ears.listen, opening.terms)
        stream = LiveStream(self, reader, ear, LiveSession(self._network, self._settings))
        self._streams.add(stream)
        return stream

    def expire(self) -> None:
        """End the streams that have been idle too long; to be called every second or so."""
        oldest = self._clock() - self.limits.idle_s
        for stream in [each for each in self._streams if each.touched <= oldest]:
            stream.fail(
                LiveError(
                    "the stream was idle for too long",
                    remedy="open another one when there is sound to send",
                    code="stream-idle",
                )
            )

    def close(self) -> None:
        """End every stream and the worker threads."""
        for stream in list(self._streams):
            stream.fail(
                LiveError(
                    "the service is stopping",
                    remedy="open another stream when it is back",
                    code="stream-closed",
                )
            )
        self._voices.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    def now(self) -> float:
        """The clock's seconds."""
        return self._clock()

    def forget(self, stream: LiveStream) -> None:
        """Count this stream no longer."""
        self._streams.discard(stream)

    async def judge(self, work: Callable[[], list[Event]]) -> list[Event]:
        """Run voice activity's work on its thread."""
        return await asyncio.get_running_loop().run_in_executor(self._voices, work)

    async def decode(self, work: Callable[[np.ndarray], T], samples_N: np.ndarray) -> T:
        """Run an ear on a decoding thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._decoders, work, samples_N)


class LiveStream:
    """One stream: `push` audio and `finish` from one task, read `events` in another."""

    def __init__(
        self, service: LiveService, reader: PcmReader, ear: Ear, session: LiveSession
    ) -> None:
        """Made by `LiveService.open`."""
        self._service, self._reader, self._ear, self._session = service, reader, ear, session
        self._events: asyncio.Queue[Event | None] = asyncio.Queue(_WAITING_EVENTS)
        self._lock = asyncio.Lock()  # of the session's calls, and so of its events' order
        self._progress = asyncio.Event()
        self._ended = asyncio.Event()
        self._decoding: set[asyncio.Task[None]] = set()
        self._error: LiveError | Exception | None = None
        self._finished = False
        self.touched = service.now()

    async def push(self, data: bytes) -> None:
        """Take audio, and wait where the model or the listener lags.

        Raises LiveError: `stream-chunk`, `stream-samples`, `stream-too-long`, `stream-order`, or
        what ended the stream.
        """
        self._refuse_if_over()
        self.touched = self._service.now()
        if len(data) > self._service.limits.message_bytes:
            raise LiveError(
                "a message holds too much audio",
                remedy=f"send at most {self._service.limits.message_bytes} bytes at once",
                code="stream-chunk",
            )
        await self._take(lambda: self._session.push(self._reader.read(data)))
        if self._session.heard_s > self._service.limits.stream_s:
            raise LiveError(
                "the stream is longer than this site allows",
                remedy="finish it and open another one",
                code="stream-too-long",
            )
        while self._session.is_behind and not self._ended.is_set():
            self._progress.clear()
            await self._progress.wait()

    async def finish(self) -> None:
        """No more audio comes: what is open is decoded, then `events` ends."""
        self._refuse_if_over()
        self._finished = True

        def last() -> list[Event]:
            return self._session.push(self._reader.finish()) + self._session.finish()

        await self._take(last)
        while not self._session.is_done and not self._ended.is_set():
            self._progress.clear()
            await self._progress.wait()
        async with self._lock:
            await self._put(None)

    async def events(self) -> AsyncIterator[Event]:
        """What happens, until the stream is finished. Raises what ended it early."""
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            while True:
                following = asyncio.ensure_future(self._events.get())
                await asyncio.wait({following, ended}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    following.cancel()
                    break
                event = following.result()
                if event is None:
                    return
                yield event
        finally:
            ended.cancel()
        if self._error is not None:
            raise self._error

    async def failure(self) -> None:
        """Wait until the stream is over; raises what ended it early."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    def fail(self, error: LiveError | Exception) -> None:
        """End the stream with an error that `events`, `push` and `finish` raise."""
        self._error = self._error or error
        self.close()

    def close(self) -> None:
        """End the stream; nothing more is decoded for it."""
        self._ended.set()
        self._progress.set()
        for task in self._decoding:
            task.cancel()
        self._service.forget(self)

    def _refuse_if_over(self) -> None:
        if self._error is not None:
            raise self._error
        if self._finished or self._ended.is_set():
            raise LiveError(
                "audio came after the stream's end",
                remedy="open another stream",
                code="stream-order",
            )

    async def _take(self, work: Callable[[], list[Event]]) -> None:
        async with self._lock:
            events = await self._service.judge(work)
            self._start_jobs()
            for event in events:
                await self._put(event)

    def _start_jobs(self) -> None:
        while (job := self._session.next_job()) is not None:
            task = asyncio.create_task(self._decode(job))
            self._decoding.add(task)
            task.add_done_callback(self._decoding.discard)

    async def _decode(self, job: Job) -> None:
        try:
            ear = self._ear.final if job.final else self._ear.draft
            result = await self._service.decode(ear, job.samples_N)
            async with self._lock:
                events = self._session.heard(job, result)
                self._start_jobs()
                for event in events:
                    await self._put(event)
            self._progress.set()
        except Exception as error:  # noqa: BLE001 - whatever fails is told to the listener
            self.fail(error)

    async def _put(self, event: Event | None) -> None:
        """Queue an event; a listener that takes none leaves the stream idle, and so ends it."""
        placed = asyncio.ensure_future(self._events.put(event))
        ended = asyncio.ensure_future(self._ended.wait())
        await asyncio.wait({placed, ended}, return_when=asyncio.FIRST_COMPLETED)
        placed.cancel()
        ended.cancel()


def _check_terms(terms: Sequence[str]) -> None:
    if len(terms) > _MAX_TERMS or any(len(term) > _MAX_TERM_CHARACTERS for term in terms):
        raise LiveError(
            "there are too many terms, or one is too long",
            remedy=f"give at most {_MAX_TERMS} terms of {_MAX_TERM_CHARACTERS} characters each",
            code="stream-terms",
        )


def _one_thread() -> None:
    """PyTorch's threads spin while they wait: on busy cores two are far slower than one."""
    import torch

    torch.set_num_threads(1)
