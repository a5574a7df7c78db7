"""The decoder's process: `python -m client_node.decoding.process SOCKET`.

It loads FFmpeg once and forks for each recording, so that one costs milliseconds and shares nothing
with the next. The fork can open no file and no connection, start no process, and has limits on
time, memory and output; it ends by signal where it passes one. The kernel keeps these limits
(setrlimit(2), setitimer(2)), whatever a malformed file makes of the decoder.
"""

from __future__ import annotations

import importlib
import io
import os
import pkgutil
import resource
import signal
import socket
import sys
import wave
from pathlib import Path

import av  # loaded once, before any fork
import numpy as np

from client_node.decoding.job import (
    MAX_JOB_BYTES,
    RATE_HZ,
    SAMPLE_BYTES,
    DecodeLimits,
    Job,
    Outcome,
)
from model_core.errors import AudioError
from model_core.pcm import mono_pieces

_FILES = 3


def main() -> None:
    """Fork for each job until the service closes the socket."""
    load_everything()
    av.logging.set_level(av.logging.PANIC)  # FFmpeg's words quote file contents
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the service closes the socket when it stops
    with socket.socket(fileno=int(sys.argv[1])) as jobs:
        while True:
            data, files, _, _ = socket.recv_fds(jobs, MAX_JOB_BYTES, _FILES)
            if not data:
                return
            if os.fork() == 0:
                jobs.close()
                _run(Job.from_json(data), *files)
            for file in files:
                os.close(file)


def load_everything() -> None:
    """Run the decoder once, and import what PyAV imports only when a stream needs it.

    A fork can open no file, so neither can it import.
    """
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    with io.BytesIO() as sound:
        with wave.open(sound, "wb") as file:
            file.setparams((1, 2, RATE_HZ // 2, 0, "NONE", ""))
            file.writeframes(bytes(RATE_HZ))
        sound.seek(0)
        for _ in mono_pieces(sound, RATE_HZ, name="silence"):
            pass


def _run(job: Job, recording: int, samples: int, report: int) -> None:
    """In the fork: decode, report, and end the process without returning."""
    try:
        confine(job.limits)
        outcome = _decode(job, recording, samples)
    except MemoryError:
        outcome = Outcome("audio-too-costly")
    except BaseException:  # noqa: BLE001 a broken file may surface as anything; never return
        outcome = Outcome("audio-unreadable")
    os.write(report, outcome.to_json())
    os._exit(0)


def confine(limits: DecodeLimits) -> None:
    """Give up, for the rest of this process, all that decoding does not need."""
    for number in (signal.SIGALRM, signal.SIGXCPU):
        signal.signal(number, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, limits.wall_s)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory_bytes = pages * resource.getpagesize() + limits.memory_bytes
    for kind, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, limits.cpu_s),
        (resource.RLIMIT_FSIZE, (limits.samples + RATE_HZ) * SAMPLE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def _decode(job: Job, recording: int, samples: int) -> Outcome:
    count, peak = 0, 0.0
    with os.fdopen(recording, "rb", closefd=False) as source:
        source.seek(0)
        try:
            for piece in mono_pieces(source, RATE_HZ, name="the recording", raw=job.raw):
                count += len(piece)
                if count > job.limits.samples:
                    return Outcome("audio-too-long")
                if len(piece):
                    peak = max(peak, float(np.abs(piece).max()))
                _write_all(samples, piece.astype("<f4", copy=False).tobytes())
        except AudioError as error:
            return Outcome(error.code)
    return Outcome(None, count, peak) if count else Outcome("audio-empty")


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


if __name__ == "__main__":
    main()
