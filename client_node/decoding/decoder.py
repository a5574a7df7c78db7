"""The service's side of decoding: hands recordings to the decoder's process, reads samples back."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import torch
from torch import Tensor

from client_node.decoding.job import (
    MAX_JOB_BYTES,
    RATE_HZ,
    SAMPLE_BYTES,
    DecodeLimits,
    Job,
    Outcome,
)
from model_core.errors import AudioError

_SPARE_S = 10.0  # beyond the limit by the clock, which the kernel keeps


class DecodedRecording:
    """16 kHz mono samples on disk, in a file without a name; gone when closed or at any crash.

    Amplitudes beyond full scale are turned down as a whole, not clipped.
    """

    def __init__(self, file: BinaryIO, samples: int, peak: float) -> None:
        self._file, self.samples = file, samples
        self._scale = 1.0 / max(1.0, peak)

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return self.samples / RATE_HZ

    def read(self, start: int, stop: int) -> Tensor:
        """Samples [start, stop) as float32 in [-1, 1]; fewer at the end of the recording."""
        stop = min(stop, self.samples)
        size = max(stop - start, 0) * SAMPLE_BYTES
        data = os.pread(self._file.fileno(), size, start * SAMPLE_BYTES)
        return torch.from_numpy(np.frombuffer(data, dtype="<f4") * np.float32(self._scale))

    def close(self) -> None:
        """Give the disk space back."""
        self._file.close()


_AT_ONCE = 4  # each may take its limit of memory


class RecordingDecoder:
    """Decodes recordings in processes forked from one that is kept warm. Threads may share it.

    The warm process starts with the first recording, and again after it died.
    """

    def __init__(self, limits: DecodeLimits | None = None) -> None:
        self._limits = limits or DecodeLimits()
        self._lock = threading.Lock()
        self._turns = threading.BoundedSemaphore(_AT_ONCE)
        self._process: subprocess.Popen[bytes] | None = None
        self._jobs: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @contextlib.contextmanager
    def decode(self, recording: BinaryIO, *, raw: str | None = None) -> Iterator[DecodedRecording]:
        """Decode an open file, which must be one of the operating system's.

        `raw` is a key of `model_core.pcm.RAW_TELEPHONY` for telephony without a container.
        Raises AudioError: `audio-empty`, `audio-unreadable`, `audio-too-long`, `audio-too-costly`.
        """
        if os.fstat(recording.fileno()).st_size == 0:
            raise audio_fault("audio-empty")
        with tempfile.TemporaryFile(prefix="auricle-") as samples:
            with self._turns:
                outcome = self._ask(Job(self._limits, raw), recording.fileno(), samples.fileno())
            if outcome.code is not None:
                raise audio_fault(outcome.code)
            yield DecodedRecording(samples, outcome.samples, outcome.peak)

    def close(self) -> None:
        """End the warm process. The next recording would start another."""
        with self._lock:
            self._stop()

    def _ask(self, job: Job, recording: int, samples: int) -> Outcome:
        answer, report = os.pipe()
        try:
            try:
                self._send(job, [recording, samples, report])
            finally:
                os.close(report)
            waiting = select.poll()  # select(2) fails where a thousand connections are open
            waiting.register(answer, select.POLLIN)
            readable = waiting.poll((job.limits.wall_s + _SPARE_S) * 1000)
            # The end of the pipe without a word: the fork was ended by a limit or a crash.
            data = os.read(answer, MAX_JOB_BYTES) if readable else b""
        finally:
            os.close(answer)
        return Outcome.from_json(data) if data else Outcome("audio-too-costly")

    def _send(self, job: Job, files: list[int]) -> None:
        with self._lock:
            for attempt in range(2):
                jobs = self._running()
                try:
                    socket.send_fds(jobs, [job.to_json()], files)
                    return
                except OSError:
                    self._stop()
                    if attempt:
                        raise

    def _running(self) -> socket.socket:
        if self._jobs is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "client_node.decoding.process", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    env=_environment(),
                )
            self._jobs = ours
        return self._jobs

    def _stop(self) -> None:
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def audio_fault(code: str) -> AudioError:
    """The error of a recording that a client sent; it names no file."""
    problem, remedy = _FAULTS.get(code, _FAULTS["audio-unreadable"])
    return AudioError(problem, remedy=remedy, code=code if code in _FAULTS else "audio-unreadable")


_FAULTS = {
    "audio-empty": ("the file holds no sound", "record it again"),
    "audio-unreadable": (
        "the file is not audio that can be read",
        "check that the file plays; convert it to WAV or FLAC if it does",
    ),
    "audio-too-long": ("the recording is too long", "send it in parts"),
    "audio-too-costly": (
        "the file cannot be decoded within the limits of time and memory",
        "check that the file plays; convert it to WAV or FLAC if it does",
    ),
}


def _environment() -> dict[str, str]:
    """Only what finds the same code; one thread, since a fork would not have the others."""
    root = Path(__file__).resolve().parents[2]
    return {"PYTHONPATH": str(root), "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
