"""Which release answered, how often, how fast and with what outcome, for Prometheus.

Counts, seconds and codes only: no text, no file, no client is in any of them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import BinaryIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from client_node.http.routes import Transcribing
from client_node.recogniser import Asked, Heard

LOOPBACK = "127.0.0.1"
BASE = "base"  # stands for the bare base model, which is no release
UNKNOWN = "unknown"  # where a recording failed before any model was asked
_BUCKETS_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)


class ServingMetrics:
    """The numbers of one serving process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.recordings = Counter(
            "auricle_recordings",
            "Recordings answered, by the release that answered and how it ended.",
            ("release", "outcome"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "auricle_recording_seconds",
            "Seconds from the first byte in hand to the last segment.",
            ("release",),
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.audio = Counter(
            "auricle_audio_seconds",
            "Seconds of audio heard.",
            ("release",),
            registry=self.registry,
        )
        self.swaps = Counter(
            "auricle_release_swaps",
            "Times that another release answered than the one before.",
            registry=self.registry,
        )
        self.serving = Gauge(
            "auricle_release_serving",
            "1 for the release that answered last.",
            ("release",),
            registry=self.registry,
        )
        self._latest: str | None = None
        self._lock = threading.Lock()

    def answered(self, release: str, outcome: str, seconds: float, audio_s: float) -> None:
        """One recording has ended; `outcome` is "ok" or an error's code. Threads may call it."""
        self.recordings.labels(release, outcome).inc()
        if release == UNKNOWN:
            return
        self.seconds.labels(release).observe(seconds)
        self.audio.labels(release).inc(audio_s)
        with self._lock:
            if self._latest == release:
                return
            if self._latest is not None:
                self.swaps.inc()
            self.serving.clear()
            self.serving.labels(release).set(1)
            self._latest = release

    def serve(self, port: int) -> Callable[[], None]:
        """Expose the numbers at http://127.0.0.1:`port`/metrics; returns what stops that.

        Raises OSError where the port is taken.
        """
        server, thread = start_http_server(port, addr=LOOPBACK, registry=self.registry)

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join()

        return stop


class MeteredTranscribing:
    """A `Transcribing` whose recordings are counted."""

    def __init__(
        self,
        inner: Transcribing,
        metrics: ServingMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._inner, self._metrics, self._clock = inner, metrics, clock

    @property
    def release(self) -> str | None:
        """Release that the next recording is heard with; None for the base."""
        return self._inner.release

    def languages(self) -> Collection[str]:
        """Codes of the languages that serve."""
        return self._inner.languages()

    def warm_up(self) -> None:
        """Load and verify what serves."""
        self._inner.warm_up()

    @contextlib.contextmanager
    def listen(self, recording: BinaryIO, asked: Asked) -> Iterator[Heard]:
        """As the inner one's, counted when it ends, well or not."""
        started_s = self._clock()
        release, audio_s, outcome = UNKNOWN, 0.0, "ok"
        try:
            with self._inner.listen(recording, asked) as heard:
                release, audio_s = heard.release or BASE, heard.duration_s
                yield heard
        except Exception as error:
            outcome = str(getattr(error, "code", "internal"))
            raise
        finally:
            self._metrics.answered(release, outcome, self._clock() - started_s, audio_s)
