"""Clips of concurrent requests go through the model together.

One thread runs the model. While it works, clips wait; what waits and may go together goes next, so
a lone clip never waits for company. Clips of one batch ask the same of the same model and are of
like length, since the longest sets the cost of all. A batch changes no text (`Transcriber`).
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Hashable, Sequence
from concurrent.futures import Future
from typing import Protocol

from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.transcribe import Transcript

MAX_BATCH = 16
MAX_BATCH_S = 60.0  # of sound, each clip counted as long as the longest: bounds memory
_LENGTHS_S = (5.0, 15.0)  # clips up to 5 s, up to 15 s, and longer ones, each among themselves


class Hearing(Protocol):
    """What the batcher needs of `model_core.transcribe.Transcriber`."""

    def transcribe_many(
        self, recordings: Sequence[Tensor], *, words: bool = False
    ) -> list[Transcript]:
        """Transcribe recordings in batches."""


@dataclasses.dataclass(frozen=True)
class _Waiting:
    together: Hashable
    model: Hearing
    clip: Tensor
    words: bool
    heard: Future[Transcript]


class Batcher:
    """Transcribes clips in batches. Threads may share it; it ends with `close`."""

    def __init__(self) -> None:
        self._waiting: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="auricle-batcher", daemon=True)
        self._thread.start()

    def hear(
        self, model: Hearing, asks: Hashable, clips: Sequence[Tensor], *, words: bool
    ) -> list[Transcript]:
        """Transcribe clips of at most 27 s; waits for the result.

        Clips whose `asks` are equal may be given to either's `model`: it names the release and
        the decoding options. Raises what the model raises, for this caller's clips alone, and
        RuntimeError after `close`.
        """
        entries = [
            _Waiting((asks, words, _length_class(clip)), model, clip, words, Future())
            for clip in clips
        ]
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.extend(entries)
            self._changed.notify()
        return [entry.heard.result() for entry in entries]

    def close(self) -> None:
        """Finish what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next_batch():
            try:
                _hear(batch)
            except Exception:  # noqa: BLE001 each caller gets its own
                for entry in batch:
                    _hear_alone(entry)

    def _next_batch(self) -> list[_Waiting]:
        """Those that go with the one that waits longest; none when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return []
            together = self._waiting[0].together
            batch = _within_bounds(
                [entry for entry in self._waiting if entry.together == together][:MAX_BATCH]
            )
            taken = {id(entry) for entry in batch}
            self._waiting = deque(entry for entry in self._waiting if id(entry) not in taken)
            return batch


def _within_bounds(batch: list[_Waiting]) -> list[_Waiting]:
    """As many of the first as one batch may hold; at least one."""
    longest = 0
    for count, entry in enumerate(batch):
        longest = max(longest, len(entry.clip))
        if count and (count + 1) * longest > MAX_BATCH_S * RATE_HZ:
            return batch[:count]
    return batch


def _hear(batch: Sequence[_Waiting]) -> None:
    clips = [entry.clip for entry in batch]
    heard = batch[0].model.transcribe_many(clips, words=batch[0].words)
    for entry, transcript in zip(batch, heard, strict=True):
        entry.heard.set_result(transcript)


def _hear_alone(entry: _Waiting) -> None:
    try:
        _hear([entry])
    except Exception as error:  # noqa: BLE001 raised again where it was asked for
        entry.heard.set_exception(error)


def _length_class(clip: Tensor) -> int:
    return sum(len(clip) > limit_s * RATE_HZ for limit_s in _LENGTHS_S)
