"""Live transcription's delays on two cores of their own, by simulation.

Run as `python -m benchmarks.streaming_model [--clips 40] [--json]`. The session of
`client_node.live` has no threads and no clock, so audio can arrive by a virtual one: every job
really runs, on one thread, and lasts in virtual time what it took in CPU time, on one of two
virtual decoding threads. That is what a machine would show that does nothing else; transport and
scheduling are left out. `benchmarks.streaming` measures all of it by the wall clock, and is the
headline; on a machine that others use as well only this one means something. Delays are defined
there.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import time
from typing import Any

import numpy as np
import torch

from benchmarks.streaming import PIECE_S, SILENCE_S, TARGET_MS, Clip, choose_clips, make_model
from client_node.live.events import Ear, Event, Final, Heard, Partial
from client_node.live.hearing import SiteEars
from client_node.live.pcm import RATE_HZ
from client_node.live.session import Job, LiveSession, LiveSettings
from client_node.live.voice import Network, silero_network
from model_core.evaluate import word_error_rate
from model_core.transcribe import Transcriber

WORKERS = 2


class Simulation:
    """One clip through one session by a virtual clock, in seconds of the stream."""

    def __init__(self, network: Network, ear: Ear) -> None:
        """`ear` hears for real."""
        self._session, self._ear = LiveSession(network, LiveSettings()), ear
        self._free_at = [0.0] * WORKERS
        self._out: list[tuple[float, int, Job, Heard | None]] = []
        self.events: list[tuple[float, Event]] = []
        self.cpu_s = 0.0

    def speak(self, clip: Clip) -> None:
        """Send the clip and its silence, and wait for the last answer."""
        silence_N = np.zeros(int(SILENCE_S * RATE_HZ), np.float32)
        samples_N = np.concatenate([clip.samples, silence_N])
        piece = int(PIECE_S * RATE_HZ)
        for at in range(0, len(samples_N), piece):
            now_s = (at + piece) / RATE_HZ
            self._answer(now_s)
            begun = time.thread_time()
            events = self._session.push(samples_N[at : at + piece])
            self._tell(now_s + self._took(begun), events)
        self._tell(now_s, self._session.finish())
        self._answer(float("inf"))

    def _took(self, begun: float) -> float:
        took_s = time.thread_time() - begun
        self.cpu_s += took_s
        return took_s

    def _answer(self, until_s: float) -> None:
        while self._out and self._out[0][0] <= until_s:
            done_s, _, job, result = heapq.heappop(self._out)
            self._tell(done_s, self._session.heard(job, result))

    def _tell(self, now_s: float, events: list[Event]) -> None:
        self.events += [(now_s, event) for event in events]
        while (job := self._session.next_job()) is not None:
            begun = time.thread_time()
            work = self._ear.final if job.final else self._ear.draft
            result = work(job.samples_N)
            worker = self._free_at.index(min(self._free_at))
            done_s = max(self._free_at[worker], now_s) + self._took(begun)
            self._free_at[worker] = done_s
            heapq.heappush(self._out, (done_s, id(job), job, result))


def measure(clip: Clip, network: Network, ears: SiteEars) -> dict[str, Any]:
    """Delays of one clip in ms, its text, and the CPU seconds it took."""
    simulation = Simulation(network, ears.listen(()))
    simulation.speak(clip)
    finals = [(at, e) for at, e in simulation.events if isinstance(e, Final) and e.text]
    shown = [
        at
        for at, e in simulation.events
        if (isinstance(e, Partial) and e.stable + e.tentative) or (isinstance(e, Final) and e.text)
    ]
    return {
        "first_partial_ms": 1000 * (shown[0] - clip.first_word_s) if shown else float("inf"),
        "final_ms": 1000 * (finals[-1][0] - clip.end_s) if finals else float("inf"),
        "last_utterance_s": finals[-1][1].end_s - finals[-1][1].start_s if finals else 0.0,
        "text": " ".join(e.text for _, e in finals),
        "cpu_s": simulation.cpu_s,
    }


def run(count: int) -> dict[str, Any]:
    """The whole simulation."""
    transcriber = Transcriber(make_model())
    clips = choose_clips(count, transcriber)
    ears, network = SiteEars(lambda: (None, transcriber)), silero_network()
    measure(clips[0], network, ears)  # what is loaded once
    made = [measure(clip, network, ears) for clip in clips]
    audio_s = sum(len(clip.samples) / RATE_HZ + SILENCE_S for clip in clips)

    def percentiles(name: str) -> dict[str, float]:
        values = [one[name] for one in made]
        return {f"p{q}": round(float(np.percentile(values, q)), 1) for q in (50, 95)}

    first, final = percentiles("first_partial_ms"), percentiles("final_ms")
    within = int(sum(max(o["first_partial_ms"], o["final_ms"]) <= TARGET_MS for o in made))
    value = max(first["p95"], final["p95"])
    return {
        "rows": {
            "clips": count,
            "first_partial_ms": first,
            "final_ms": final,
            "both_within_300_ms": within,
            "wer": round(word_error_rate([c.text for c in clips], [o["text"] for o in made]), 4),
            "cores_used": round(sum(o["cpu_s"] for o in made) / audio_s, 3),
            "load_average": os.getloadavg()[0],
        },
        "spoken": made,
        "headline": {
            "metric": "simulated_streaming_delay_p95_ms",
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
