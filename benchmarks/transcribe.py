"""Transcription through HTTP: a site's service and faster-whisper, on the same clips in turns.

    python -m benchmarks.transcribe [--json] [--clips N] [--minutes M] [--requests N]

The same tiny.en weights, int8, one beam, two threads each; real people's clips from
../shared/speech/en (or AURICLE_SHARED). Each recording is posted to one server and then to the
other, so that both meet the same machine. Three groups: clips under 5 s, of 5 to 15 s, and M
minutes of clips one after another. Latency is from the first byte sent to the last received; the
real-time factor is all latency ÷ all sound. CPU seconds are told too, since latency on a machine
that is busy with other work says more of the others. Peak memory is the resident high-water mark
of the server (VmHWM, Linux) after the group, ours with its decoder's process.

Then 1 to 32 clients at once post clips under 5 s: throughput, and the latency that each sees.

The headline, fixed beforehand: the peer's latency ÷ ours, summed over clips under 15 s; it is met
at 3 with at most half the peer's word error rate there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import soundfile
from rich.console import Console
from rich.table import Table

from model_core.evaluate import word_error_rate

REPOSITORY = Path(__file__).resolve().parents[1]
SERVERS = ("ours", "peer")
THREADS = 2
CLIENTS = (1, 2, 4, 8, 16, 32)
RATE_HZ = 16_000
PAUSE_S = 0.5
TARGET_TIMES, TARGET_WER_RATIO = 3.0, 0.5
PREPARE = (
    "import pathlib, sys; from model_core.base import prepare_base; "
    "prepare_base(None, pathlib.Path(sys.argv[1]))"
)
START_S, REQUEST_S = 120.0, 1200.0


@dataclass(frozen=True)
class Recording:
    """One file to post, and what is said in it."""

    data: bytes
    text: str
    duration_s: float


@dataclass(frozen=True)
class Server:
    """A server that runs, and a client of it."""

    process: psutil.Process
    client: httpx.Client

    def hear(self, recording: Recording) -> tuple[str, float]:
        """Text and seconds."""
        start = time.perf_counter()
        answer = self.client.post(
            "/v1/audio/transcriptions",
            files={"file": ("clip.flac", recording.data)},
            data={"model": "whisper-1"},
        )
        seconds = time.perf_counter() - start
        return str(answer.raise_for_status().json()["text"]), seconds

    def cpu_s(self) -> float:
        """CPU seconds so far; without the forks that decode (about 0.02 s a clip)."""
        times = [self.process.cpu_times(), *(c.cpu_times() for c in self.process.children())]
        return sum(each.user + each.system for each in times)

    def peak_mb(self) -> float:
        """Resident high-water mark of the server and its children."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(_high_water_bytes(process.pid) for process in processes) / 1e6


def _high_water_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


@contextlib.contextmanager
def running(which: str, base: Path) -> Iterator[Server]:
    """Start a server in a process of its own, and wait for its health."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.transcribe_servers", which, str(port)]
    with (
        subprocess.Popen([*command, str(THREADS), str(base)]) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=REQUEST_S) as client,
    ):
        try:
            _wait_for_health(client, process)
            yield Server(psutil.Process(process.pid), client)
        finally:
            process.terminate()


def _wait_for_health(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if client.get("/health").is_success:
                return
        time.sleep(0.2)
    raise RuntimeError("the server did not start")


def load(folder: Path, low_s: float, high_s: float, most: int | None) -> list[Recording]:
    """Clips of a length, evenly chosen."""
    rows = [json.loads(line) for line in (folder / "en.jsonl").read_text().splitlines()]
    rows = [row for row in rows if low_s <= row["duration_s"] < high_s]
    if most is not None and len(rows) > most:
        rows = rows[:: len(rows) // most][:most]
    return [
        Recording((folder / row["audio"]).read_bytes(), row["text"], row["duration_s"])
        for row in rows
    ]


def concatenated(clips: Sequence[Recording], minutes: float) -> Recording:
    """Clips one after another with half a second between, as one FLAC file."""
    pieces, texts, samples = [], [], 0
    for clip in itertools.cycle(clips):
        sound, _ = soundfile.read(io.BytesIO(clip.data), dtype="float32")
        pieces += [sound, np.zeros(int(PAUSE_S * RATE_HZ), np.float32)]
        texts.append(clip.text)
        samples += sum(len(piece) for piece in pieces[-2:])
        if samples >= minutes * 60 * RATE_HZ:
            break
    file = io.BytesIO()
    soundfile.write(file, np.concatenate(pieces), RATE_HZ, format="FLAC")
    return Recording(file.getvalue(), " ".join(texts), samples / RATE_HZ)


def side_by_side(
    servers: dict[str, Server], group: str, recordings: Sequence[Recording]
) -> list[dict[str, object]]:
    """Every recording to each server in turn; one row a server."""
    texts: dict[str, list[str]] = {name: [] for name in servers}
    seconds: dict[str, list[float]] = {name: [] for name in servers}
    cpu_before_s = {name: server.cpu_s() for name, server in servers.items()}
    for recording in recordings:
        for name, server in servers.items():
            text, latency_s = server.hear(recording)
            texts[name].append(text)
            seconds[name].append(latency_s)
    references = [recording.text for recording in recordings]
    sound_s = sum(recording.duration_s for recording in recordings)
    return [
        {
            "group": group,
            "server": name,
            "recordings": len(recordings),
            "sound_s": round(sound_s, 1),
            "wer": round(word_error_rate(references, texts[name]), 4),
            "real_time_factor": round(sum(seconds[name]) / sound_s, 4),
            "p50_s": round(quantile(seconds[name], 50), 3),
            "p95_s": round(quantile(seconds[name], 95), 3),
            "latency_s": round(sum(seconds[name]), 2),
            "cpu_s": round(server.cpu_s() - cpu_before_s[name], 2),
            "peak_mb": round(server.peak_mb()),
        }
        for name, server in servers.items()
    ]


def crowd(server: Server, clips: Sequence[Recording], clients: int, requests: int) -> list[float]:
    """Latencies of so many requests by so many clients at once, and the whole time as the last."""
    work = list(itertools.islice(itertools.cycle(clips), requests))
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        latencies = [seconds for _, seconds in pool.map(server.hear, work)]
        return [*latencies, time.perf_counter() - start]


def crowds(
    servers: dict[str, Server], clips: Sequence[Recording], requests: int
) -> list[dict[str, object]]:
    """One row for each number of clients and server."""
    rows: list[dict[str, object]] = []
    for clients in CLIENTS:
        for name, server in servers.items():
            *latencies, whole_s = crowd(server, clips, clients, requests)
            rows.append(
                {
                    "clients": clients,
                    "server": name,
                    "requests": requests,
                    "requests_per_s": round(requests / whole_s, 2),
                    "p50_s": round(quantile(latencies, 50), 3),
                    "p95_s": round(quantile(latencies, 95), 3),
                }
            )
    return rows


def quantile(values: Sequence[float], percent: int) -> float:
    """Percentile; a single value is its own."""
    if len(values) == 1:
        return values[0]
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def headline(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """The peer's time ÷ ours under 15 s, with the ratio of their word errors."""
    short = [row for row in rows if row["group"] != "long"]

    def total(name: str, field: str, weight: str | None = None) -> float:
        return sum(
            float(str(row[field])) * (float(str(row[weight])) if weight else 1.0)
            for row in short
            if row["server"] == name
        )

    times = total("peer", "latency_s") / total("ours", "latency_s")
    # Groups weigh by their sound, which is nearly by their words.
    errors = {name: total(name, "wer", "sound_s") for name in SERVERS}
    wer_ratio = errors["ours"] / errors["peer"] if errors["peer"] else float("inf")
    return {
        "metric": "times faster than faster-whisper on clips under 15 s, through HTTP",
        "value": round(times, 2),
        "wer_ratio": round(wer_ratio, 2),
        "target": TARGET_TIMES,
        "target_wer_ratio": TARGET_WER_RATIO,
        "met": times >= TARGET_TIMES and wer_ratio <= TARGET_WER_RATIO,
    }


def run(folder: Path, clips: int | None, minutes: float, requests: int) -> dict[str, object]:
    """All rows and the headline."""
    short, middle = load(folder, 0, 5, clips), load(folder, 5, 15, clips)
    groups = {"< 5 s": short, "5-15 s": middle}
    if minutes:
        groups["long"] = [concatenated([*short, *middle], minutes)]
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        # In a process of its own, whose memory is not ours.
        subprocess.run([sys.executable, "-c", PREPARE, str(base)], check=True)
        servers = {name: stack.enter_context(running(name, base)) for name in SERVERS}
        for server in servers.values():  # what is loaded at the first call is not timed
            server.hear(short[0])
            server.hear(middle[0])
        rows = [row for name, group in groups.items() for row in side_by_side(servers, name, group)]
        crowd_rows = crowds(servers, short, requests) if requests else []
    load_average = os.getloadavg()[0]
    return {
        "rows": rows,
        "clients": crowd_rows,
        "load_average": round(load_average, 1),
        "headline": headline(rows),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clips", type=int, help="most clips of a group; without it, all")
    parser.add_argument("--minutes", type=float, default=20.0, help="of the long one; 0 for none")
    parser.add_argument("--requests", type=int, default=96, help="a number of clients; 0 for none")
    default = Path(os.environ.get("AURICLE_SHARED", REPOSITORY.parent / "shared"))
    parser.add_argument("--shared", type=Path, default=default)
    arguments = parser.parse_args()
    result = run(
        arguments.shared / "speech", arguments.clips, arguments.minutes, arguments.requests
    )
    if arguments.json:
        print(json.dumps(result))
        return
    console = Console()
    for part in ("rows", "clients"):
        rows = result[part]
        assert isinstance(rows, list)
        if rows:
            table = Table(*rows[0])
            for row in rows:
                table.add_row(*(str(value) for value in row.values()))
            console.print(table)
    console.print_json(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
