"""Live transcription's delays, through its WebSocket, at the speed of speech.

Run as `python -m benchmarks.streaming [--clips 40] [--json]`. A server process with two decoding
threads serves the base model; real clips of `../shared/speech/en` (two words and more, 2 to 12 s)
are sent in pieces of 40 ms as they would be spoken, followed by 1.2 s of silence.

* First partial: from the end of the first word (aligned offline on the whole clip) to the first
  event with text.
* Final: from the last 20 ms of sound within 35 dB of the clip's loudest to the last final.

The headline is the larger of the two 95th percentiles, in ms; the target is 300. Fixed before the
first run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import socket
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase, make_base
from model_core.evaluate import normalise, word_error_rate
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint

SHARED = Path(os.environ.get("AURICLE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
PIECE_S = 0.04
SILENCE_S = 1.2
TARGET_MS = 300.0
SHORTEST_S, LONGEST_S = 2.0, 12.0
_LEVEL_SAMPLES = RATE_HZ // 50
_AUDIBLE = 10 ** (-35 / 20)


@dataclass(frozen=True)
class Clip:
    """A clip to speak: samples [N], what is said, when its first word ends and its sound ends."""

    samples: np.ndarray
    text: str
    offline: str
    first_word_s: float
    end_s: float


@dataclass(frozen=True)
class Spoken:
    """What came of one clip: delays in ms (None where there was no partial), and its text."""

    first_partial_ms: float | None
    final_ms: float
    text: str
    stable_words: int
    stable_kept: int


def make_model() -> SpeechBase:
    """tiny.en with four experts a block, as a site serves it before any release."""
    return make_base(load_whisper(resolve_checkpoint(None)), MixtureConfig())


def choose_clips(count: int, transcriber: Transcriber) -> list[Clip]:
    """`count` clips, evenly over the list."""
    lines = (SHARED / "speech" / "en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rows = [r for r in rows if SHORTEST_S <= r["duration_s"] <= LONGEST_S and " " in r["text"]]
    chosen = [rows[index * len(rows) // count] for index in range(count)]
    return [_clip(SHARED / "speech" / row["audio"], row["text"], transcriber) for row in chosen]


def _clip(path: Path, text: str, transcriber: Transcriber) -> Clip:
    samples = read_audio(path)
    heard = transcriber.transcribe(samples, words=True)
    words = [word for segment in heard.segments for word in segment.words]
    levels = torch.stack([p.square().mean().sqrt() for p in samples.split(_LEVEL_SAMPLES)])
    last = int((levels > levels.max() * _AUDIBLE).nonzero().max()) + 1
    end_s = last * _LEVEL_SAMPLES / RATE_HZ
    return Clip(samples.numpy(), text, heard.text, words[0].end_s, end_s)


def serve(ready: Connection) -> None:
    """The server process: tells its port, and serves until it is ended."""
    import uvicorn
    from fastapi import FastAPI

    from client_node.http.server import server_config
    from client_node.live.hearing import SiteEars
    from client_node.live.service import LiveService
    from client_node.live.voice import silero_network
    from client_node.live.websocket import live_router

    transcriber = Transcriber(make_model())
    ears = SiteEars(lambda: (None, transcriber))
    app = FastAPI()
    app.include_router(live_router(LiveService(silero_network(), ears, time.monotonic)))
    listening = socket.create_server(("127.0.0.1", 0))
    ready.send(listening.getsockname()[1])
    uvicorn.Server(server_config(app, "127.0.0.1", 0)).run([listening])


async def speak(url: str, clip: Clip) -> Spoken:
    """Send a clip at the speed of speech; measure what comes back."""
    from websockets.asyncio.client import connect

    silence_N = np.zeros(int(SILENCE_S * RATE_HZ), np.float32)
    data = (np.concatenate([clip.samples, silence_N]) * 32767).astype("<i2").tobytes()
    piece = int(PIECE_S * RATE_HZ) * 2
    events: list[tuple[float, dict[str, Any]]] = []
    async with connect(url) as line:
        await line.send('{"type":"start"}')
        await line.recv()
        begun = time.monotonic()

        async def listen() -> None:
            async for message in line:
                events.append((time.monotonic() - begun, json.loads(message)))

        listening = asyncio.create_task(listen())
        for at in range(0, len(data), piece):
            # A microphone hands a piece over when its last sample has been spoken.
            due_s = (at + piece) / 2 / RATE_HZ
            await asyncio.sleep(max(0.0, begun + due_s - time.monotonic()))
            await line.send(data[at : at + piece])
        await line.send('{"type":"finish"}')
        await listening
    return _measured(clip, events)


def _measured(clip: Clip, events: list[tuple[float, dict[str, Any]]]) -> Spoken:
    finals = [(at, e) for at, e in events if e["type"] == "final" and e["text"]]
    texts = {e["utterance"]: e["text"] for _, e in finals}
    shown = [at for at, e in events if e["type"] in ("partial", "final") and _text_of(e)]
    stable = {e["utterance"]: e["stable"] for _, e in events if e["type"] == "partial"}
    pairs = [(normalise(s).split(), normalise(texts.get(u, "")).split()) for u, s in stable.items()]
    return Spoken(
        first_partial_ms=1000 * (shown[0] - clip.first_word_s) if shown else None,
        final_ms=1000 * (finals[-1][0] - clip.end_s) if finals else float("inf"),
        text=" ".join(texts[number] for number in sorted(texts)),
        stable_words=sum(len(before) for before, _ in pairs),
        stable_kept=sum(
            sum(a == b for a, b in zip(before, after, strict=False)) for before, after in pairs
        ),
    )


def _text_of(event: dict[str, Any]) -> str:
    if event["type"] == "final":
        return str(event["text"])
    return str(event["stable"] + event["tentative"])


@contextlib.contextmanager
def _serving() -> Any:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs,))
    process.start()
    try:
        yield f"ws://127.0.0.1:{ours.recv()}/v1/audio/stream", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.join(30)


def _percentiles(values_ms: list[float]) -> dict[str, float]:
    return {f"p{q}": round(float(np.percentile(values_ms, q)), 1) for q in (50, 95)}


def run(count: int) -> dict[str, Any]:
    """The whole benchmark."""
    transcriber = Transcriber(make_model())
    clips = choose_clips(count, transcriber)
    with _serving() as (url, server):
        asyncio.run(speak(url, clips[0]))  # the first stream loads what is loaded once
        before, begun = sum(server.cpu_times()[:2]), time.monotonic()
        spoken = [asyncio.run(speak(url, clip)) for clip in clips]
        cpu_s, wall_s = sum(server.cpu_times()[:2]) - before, time.monotonic() - begun
        memory_bytes = server.memory_info().rss
    partials = _percentiles([s.first_partial_ms for s in spoken if s.first_partial_ms is not None])
    finals = _percentiles([s.final_ms for s in spoken])
    texts = [clip.text for clip in clips]
    value = max(partials["p95"], finals["p95"])
    stable = sum(s.stable_words for s in spoken)
    return {
        "rows": {
            "clips": count,
            "first_partial_ms": partials,
            "final_ms": finals,
            "no_partial": sum(s.first_partial_ms is None for s in spoken),
            "wer_live": round(word_error_rate(texts, [s.text for s in spoken]), 4),
            "wer_offline": round(word_error_rate(texts, [clip.offline for clip in clips]), 4),
            "stable_words_kept": round(sum(s.stable_kept for s in spoken) / max(stable, 1), 4),
            "server_cores_used": round(cpu_s / wall_s, 3),
            "cpu_headroom": round(1 - cpu_s / wall_s / 2, 3),
            "server_memory_bytes": memory_bytes,
            "load_average": os.getloadavg()[0],
        },
        "spoken": [asdict(one) for one in spoken],
        "headline": {
            "metric": "streaming_delay_p95_ms",
            "value": value,
            "target": TARGET_MS,
            "met": value <= TARGET_MS,
        },
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    result = run(chosen.clips)
    if chosen.json:
        print(json.dumps(result))
        return
    for name, row in result["rows"].items():
        print(f"{name:>20}  {row}")
    print(result["headline"])


if __name__ == "__main__":
    main()
