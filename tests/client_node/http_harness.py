"""A site's HTTP service on a real socket, with a nano base behind it."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
import wave
from collections.abc import Iterator
from typing import Any

import numpy as np
import uvicorn

from client_node.api import make_app
from client_node.batcher import Batcher
from client_node.decoding.decoder import RecordingDecoder
from client_node.decoding.job import DecodeLimits
from client_node.http.server import server_config
from client_node.recogniser import Recogniser
from client_node.status import SiteStatus
from model_core.base import SpeechBase
from model_core.transcribe import Transcriber

RATE_HZ = 16_000


class OneModel:
    """Serves one model for ever, as the base does where no release is active."""

    release = None

    def __init__(self, base: SpeechBase) -> None:
        self._transcriber = Transcriber(base)

    def current(self) -> tuple[str | None, Transcriber]:
        return None, self._transcriber


def bare_status() -> SiteStatus:
    return SiteStatus(
        site="north",
        coordinator_url="",
        recordings=0,
        subjects=0,
        ledger_entries=0,
        ledger_root="ab" * 32,
        budgets=(),
        receipts=(),
        bytes_sent=0,
        release=None,
    )


@contextlib.contextmanager
def recogniser_of(base: SpeechBase, limits: DecodeLimits | None = None) -> Iterator[Recogniser]:
    recogniser = Recogniser(OneModel(base), RecordingDecoder(limits), Batcher())
    try:
        yield recogniser
    finally:
        recogniser.close()


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """Serve an app on a free port of this machine; yields its URL once it answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        host, port = listener.getsockname()
        server = uvicorn.Server(server_config(app, host, port))
        started = threading.Event()
        startup = server.startup

        async def told_startup(sockets: list[socket.socket] | None = None) -> None:
            await startup(sockets=sockets)
            started.set()

        server.startup = told_startup  # type: ignore[method-assign]
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            assert started.wait(30)
            yield f"http://{host}:{port}"
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def site_service(
    base: SpeechBase, decode_limits: DecodeLimits | None = None, **options: Any
) -> Iterator[str]:
    """The whole service over a base; yields its URL."""
    with (
        recogniser_of(base, decode_limits) as recogniser,
        serving(make_app(recogniser, bare_status, **options)) as url,
    ):
        yield url


def speechlike(seconds: float, rate_hz: int = RATE_HZ, seed: int = 0) -> np.ndarray:
    """Noise whose loudness moves as speech does, so that it is not taken for silence or hum."""
    generator = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate_hz)) / rate_hz
    swell = np.sin(2 * np.pi * 2.0 * t) ** 2
    return (0.3 * swell * generator.standard_normal(len(t))).astype(np.float32)


def wav(samples: np.ndarray, rate_hz: int = RATE_HZ) -> bytes:
    """16-bit WAV of mono samples in [-1, 1]."""
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, rate_hz, 0, "NONE", ""))
        file.writeframes((samples.clip(-1, 1) * 32767).astype("<i2").tobytes())
    return sound.getvalue()
