"""Requests that fail while releases are swapped under load.

    python -m benchmarks.hot_swap [--json] [--requests N] [--every N] [--clients N] [--base FOLDER]

A real HTTP service over a real model store: clients send short recordings in turns of four answer
formats, and after every so many answers the operator activates the other release, or rolls back. An
answer has failed when its status is not 200, or when it names a release that did not serve at any
moment between question and answer. Without --base the model is a random one of a
few hundred kilobytes: this measures the swap, not the speech. Latencies include the clients, which
share the processors with the service.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import io
import json
import statistics
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
import uvicorn

from client_node.api import make_app
from client_node.batcher import Batcher
from client_node.decoding.decoder import RecordingDecoder
from client_node.http.server import server_config
from client_node.inference import SiteTranscriber, transcriber_loader
from client_node.model_store import ModelStore
from client_node.recogniser import Recogniser
from client_node.serving_metrics import BASE, MeteredTranscribing, ServingMetrics
from client_node.status import SiteStatus
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase, load_base, save_base
from model_core.nano import nano_base
from privacy.parcel import ReleaseManifest
from privacy.signing import Identity, seal

RATE_HZ = 16_000
CLIPS_S = (0.4, 0.9, 1.7)
FORMATS = ("json", "verbose_json", "text", "srt")
RELEASES = ("one", "two")
REQUESTS, EVERY, CLIENTS = 10_000, 500, 16
TIMEOUT_S = 120.0
MEGABYTE = 1e6
NO_ANSWER = 0  # in place of a status


@dataclasses.dataclass(frozen=True)
class Swap:
    """A release (or the base) that serves from some moment between the two on."""

    release: str
    began_s: float
    done_s: float


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: when asked and answered, its status, and the release where it names one."""

    asked_s: float
    answered_s: float
    status: int
    release: str | None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a run saw."""

    answers: tuple[Answer, ...]
    swaps: tuple[Swap, ...]
    counted: dict[str, float]  # by release, as the metrics say
    resident_bytes: tuple[int, int]  # after a tenth of the answers, and at the end


def clip(duration_s: float) -> bytes:
    """A WAV file of a swelling tone."""
    time_s = np.arange(int(duration_s * RATE_HZ)) / RATE_HZ
    swell = 0.3 * np.sin(2 * np.pi * 2 * time_s) * np.sin(2 * np.pi * 300 * time_s)
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE_HZ)
        out.writeframes((swell * 32767).astype("<i2").tobytes())
    return file.getvalue()


def stage_releases(store: ModelStore, base: SpeechBase, coordinator: Identity) -> None:
    """Stage two signed releases with random adapters."""
    config = AdapterConfig("lora", 2, 4.0, (r"model\.decoder\..*\.(q_proj|v_proj)",))
    for number, name in enumerate(RELEASES, 1):
        adapter = attach(base.model, config)
        generator = torch.Generator().manual_seed(number)
        adapter.load_vector(0.1 * torch.randn(adapter.size, generator=generator))
        data = adapter.to_safetensors()
        manifest = ReleaseManifest(
            release=name,
            job="0a",
            rounds=1,
            base_sha256=base.base_sha256,
            plan_sha256="0" * 64,
            adapter_sha256=hashlib.sha256(data).hexdigest(),
            parent=None,
            tree_head="0" * 64,
            tree_size=number,
            issued_at="2026-01-01T00:00:00+00:00",
            epsilon_loc=1.0,
            epsilon_sec=1.0,
            delta=1e-6,
        )
        store.stage(seal(manifest, coordinator), data)


class Swapper:
    """Makes another release serve each time that `every` more answers have come."""

    def __init__(self, store: ModelStore, every: int) -> None:
        self._store, self._every = store, every
        self._answers: list[Answer] = []
        self._changed = threading.Condition()
        now_s = time.monotonic()
        self.swaps = [Swap(BASE, now_s, now_s)]

    def take(self, answer: Answer) -> int:
        """Keep an answer; how many there are."""
        with self._changed:
            self._answers.append(answer)
            self._changed.notify_all()
            return len(self._answers)

    def run(self, total: int) -> tuple[Answer, ...]:
        """Swap until `total` answers have come; all of them."""
        for count in range(self._every, total, self._every):
            self._wait_for(count)
            self._swap()
        self._wait_for(total)
        return tuple(self._answers)

    def _wait_for(self, count: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: len(self._answers) >= count)

    def _swap(self) -> None:
        began_s, turn = time.monotonic(), len(self.swaps)
        if turn % 3 == 0:
            self._store.rollback()
        else:
            other = [name for name in RELEASES if name != self._store.active_id]
            self._store.activate(other[turn % len(other)], by_operator=True)
        self.swaps.append(Swap(self._store.active_id or BASE, began_s, time.monotonic()))


@contextlib.contextmanager
def serving(app: object) -> Iterator[str]:
    """Serve the app in a thread; its URL."""
    server = uvicorn.Server(server_config(app, "127.0.0.1", 0))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the server ended before it began to serve")
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


def ask(client: httpx.Client, number: int, clips: tuple[bytes, ...]) -> Answer:
    """Send one request."""
    form = FORMATS[number % len(FORMATS)]
    asked_s = time.monotonic()
    try:
        reply = client.post(
            "/v1/audio/transcriptions",
            files={"file": ("clip.wav", clips[number % len(clips)])},
            data={"model": "auricle", "response_format": form},
        )
    except httpx.HTTPError:
        return Answer(asked_s, time.monotonic(), NO_ANSWER, None)
    named = form == "verbose_json" and reply.status_code == httpx.codes.OK
    release = (reply.json()["release"] or BASE) if named else None
    return Answer(asked_s, time.monotonic(), reply.status_code, release)


def run(
    folder: Path, base: SpeechBase, *, requests: int = REQUESTS, every: int, clients: int = CLIENTS
) -> Outcome:
    """Serve, ask and swap, with everything in `folder`."""
    coordinator = Identity.generate()
    store = ModelStore(folder / "releases", [coordinator.public], base.base_sha256)
    save_base(base, folder / "base")
    stage_releases(store, base, coordinator)
    load = transcriber_loader(folder / "base", base.base_sha256)
    metrics = ServingMetrics()
    clips = tuple(clip(duration_s) for duration_s in CLIPS_S)
    swapper, numbers = Swapper(store, every), iter(range(requests))
    resident: list[int] = []

    def client_work(url: str) -> None:
        with httpx.Client(base_url=url, timeout=TIMEOUT_S, trust_env=False) as client:
            while (number := next(numbers, None)) is not None:
                if swapper.take(ask(client, number, clips)) == requests // 10:
                    resident.append(resident_bytes())

    with contextlib.closing(
        Recogniser(SiteTranscriber(store, load), RecordingDecoder(), Batcher())
    ) as recogniser:
        recogniser.warm_up()
        app = make_app(MeteredTranscribing(recogniser, metrics), _status)
        with serving(app) as url:
            threads = [threading.Thread(target=client_work, args=(url,)) for _ in range(clients)]
            for thread in threads:
                thread.start()
            answers = swapper.run(requests)
            for thread in threads:
                thread.join()
        resident.append(resident_bytes())
    counted = {name: _counted(metrics, name) for name in (*RELEASES, BASE)}
    return Outcome(answers, tuple(swapper.swaps), counted, (resident[0], resident[-1]))


def resident_bytes() -> int:
    """Resident memory of this process and its children."""
    here = psutil.Process()
    return sum(int(one.memory_info().rss) for one in (here, *here.children(recursive=True)))


def failures(outcome: Outcome) -> list[Answer]:
    """Answers that failed, or that name a release which did not serve meanwhile."""
    ends_s = [swap.done_s for swap in outcome.swaps[1:]] + [float("inf")]
    spans = list(zip(outcome.swaps, ends_s, strict=True))

    def possible(answer: Answer) -> bool:
        return any(
            swap.release == answer.release
            and swap.began_s <= answer.answered_s
            and answer.asked_s <= end_s
            for swap, end_s in spans
        )

    return [
        one
        for one in outcome.answers
        if one.status != httpx.codes.OK or (one.release is not None and not possible(one))
    ]


def _counted(metrics: ServingMetrics, release: str) -> float:
    labels = {"release": release, "outcome": "ok"}
    return metrics.registry.get_sample_value("auricle_recordings_total", labels) or 0.0


def _status() -> SiteStatus:
    return SiteStatus("site", "", 0, 0, 0, "0" * 64, (), (), 0, None)


def _row(name: str, answers: list[Answer]) -> dict[str, object]:
    seconds = sorted(one.answered_s - one.asked_s for one in answers)
    return {
        "requests": name,
        "count": len(seconds),
        "p50_ms": round(1e3 * statistics.median(seconds), 1),
        "p99_ms": round(1e3 * seconds[int(0.99 * (len(seconds) - 1))], 1),
        "slowest_ms": round(1e3 * seconds[-1], 1),
    }


def result_of(outcome: Outcome) -> dict[str, object]:
    """Rows and the headline."""
    swapped = [one for one in outcome.answers if _meets_swap(outcome, one)]
    others = [one for one in outcome.answers if not _meets_swap(outcome, one)]
    failed = failures(outcome)
    rows = [_row("during no swap", others), _row("during a swap", swapped)]
    before, after = outcome.resident_bytes
    rows.append(
        {
            "swaps": len(outcome.swaps) - 1,
            "resident_mb_after_a_tenth": round(before / MEGABYTE, 1),
            "resident_mb_at_the_end": round(after / MEGABYTE, 1),
            "answered": outcome.counted,
        }
    )
    total = len(outcome.answers)
    headline = {
        "metric": f"failed requests of {total} with {len(outcome.swaps) - 1} swaps under load",
        "value": len(failed),
        "target": 0,
        "met": not failed,
    }
    return {"rows": rows, "headline": headline}


def _meets_swap(outcome: Outcome, answer: Answer) -> bool:
    return any(
        answer.asked_s <= swap.done_s and swap.began_s <= answer.answered_s
        for swap in outcome.swaps[1:]
    )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="requests in all")
    parser.add_argument("--every", type=int, default=EVERY, help="answers from swap to swap")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="clients at once")
    parser.add_argument("--base", type=Path, help="a prepared base; without it a tiny random one")
    arguments = parser.parse_args()
    base = load_base(arguments.base) if arguments.base else nano_base()
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        outcome = run(
            Path(folder),
            base,
            requests=arguments.requests,
            every=arguments.every,
            clients=arguments.clients,
        )
    result = result_of(outcome)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
