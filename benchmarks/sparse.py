"""What sparsity saves and what it costs: FLOPs per second of speech against word error rate.

    python -m benchmarks.sparse [--json] [--run FOLDER ...] [--plot PNG] [--limit N]

Needs ../shared/speech/en (or AURICLE_SHARED): a fixed third of the clips, by the hash of their
names, is the test; `fitted` rows were fitted on the others, of the same speaker, and `fitted,
others` rows on speakers of other languages and not one English word. `--run` adds what `auricle
base distil` left in a folder, which must have been trained without the test clips
(`python -m benchmarks.sparse --training-clips FOLDER` copies them). FLOPs are exact
(`model_core.compute`), of each clip's own window and of the tokens that were written; per second of
speech means per second of the clips, not of padding. The second table is CPU time of the encoder in
one window, in turns in one process, against a dense model of as many parameters.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import random
import shutil
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.encoder_times import encoder_times
from model_core import features
from model_core.audio import read_audio
from model_core.base import SpeechBase, load_base
from model_core.cached_decoder import CachedDecoder
from model_core.compute import TranscriptionFlops, active_share, transcription_flops
from model_core.decode import greedy
from model_core.distil_run import BASE_FOLDER
from model_core.evaluate import normalise, word_error_rate
from model_core.features import FRAMES_PER_STATE, MAX_WINDOW_S, encode_mel, log_mel
from model_core.layer_fit import fit_encoder
from model_core.lessons import student_window_s
from model_core.silent_tail import TailedEncoder
from model_core.transcribe import clip_window_s
from model_core.upcycle import MixtureConfig, mixture_named, upcycle
from model_core.weights import Whisper, load_whisper, resolve_checkpoint

SHARED = Path(os.environ.get("AURICLE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MARGIN_S = 2.0
MOST_EXTRA_WER = 0.5
TARGET = 0.6
OTHER_SPEAKERS = ("fr", "it", "ru")  # the Spanish speaker is the English one
EXPERTS, SHARED_FRACTION = 8, 0.25
COPIES = ("upcycled-shared", "copied")
TOP_KS = (7, 6, 5, 4, 3)
RESAMPLES = 2000
_BATCH = 16

SHORT = f"clip + {MARGIN_S:g} s"
CUT = "≥ 10 s"  # the clip + 3 s: an encoder that cuts and remembers no silence
REMEMBERED = "clip + 1 s, remembered"  # the product's: what follows is known to be silence
WINDOWS: dict[str, Callable[[int], float]] = {
    "30 s": lambda _: MAX_WINDOW_S,
    CUT: clip_window_s,
    SHORT: lambda samples: student_window_s(samples, MARGIN_S),
    REMEMBERED: lambda samples: student_window_s(samples, features.MARGIN_S),
}


@dataclass(frozen=True)
class Clip:
    """A recording with its text."""

    samples: Tensor
    text: str
    duration_s: float


@dataclass(frozen=True)
class Score:
    """One model in one kind of window, over all test clips."""

    texts: tuple[str, ...]
    flops: TranscriptionFlops


def clips_of(test: bool, limit: int | None = None) -> list[tuple[Path, dict[str, Any]]]:
    """The clips of the fixed third that tests, or of the rest."""
    lines = (SHARED / "speech" / "en.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    chosen = [row for row in rows if _is_test(row["audio"]) == test]
    return [(SHARED / "speech" / row["audio"], row) for row in chosen[:limit]]


def _is_test(name: str) -> bool:
    return int(hashlib.sha256(name.encode()).hexdigest(), 16) % 3 == 0


def load_clips(limit: int | None) -> list[Clip]:
    """Samples and texts of the test."""
    return [
        Clip(read_audio(path), row["text"], row["duration_s"])
        for path, row in clips_of(test=True, limit=limit)
    ]


def short_mels(paths: Sequence[Path]) -> list[Tensor]:
    """Spectrograms of short windows, to fit on."""
    clips = [read_audio(path) for path in paths]
    return [log_mel([clip], WINDOWS[SHORT](len(clip)))[0] for clip in clips]


@torch.inference_mode()
def score(base: SpeechBase, clips: Sequence[Clip], name: str) -> Score:
    """Transcribe in batches of like windows, counting each clip's own FLOPs."""
    window = WINDOWS[name]
    tailed = TailedEncoder(base.model.model.encoder) if name == REMEMBERED else None
    prefix = tuple(base.tokenizer.prefix("en"))
    by_window: dict[float, list[int]] = defaultdict(list)
    for number, clip in enumerate(clips):
        by_window[window(len(clip.samples))].append(number)
    decoder = CachedDecoder(base.model)
    texts = [""] * len(clips)
    counts = []
    for duration_s, members in by_window.items():
        for start in range(0, len(members), _BATCH):
            numbers = members[start : start + _BATCH]
            mel_BMT = log_mel([clips[number].samples for number in numbers], duration_s)
            if tailed is not None:
                states_BSD, bias_BS = tailed(mel_BMT, [mel_BMT.shape[2]] * len(numbers))
            else:
                states_BSD, bias_BS = encode_mel(base.model.model.encoder, mel_BMT), None
            own = mel_BMT.shape[2] // FRAMES_PER_STATE
            remembered = states_BSD.shape[1] - own
            for number, decoded in zip(
                numbers,
                greedy(decoder, base, states_BSD, prefix, bias_CS=bias_BS),
                strict=True,
            ):
                texts[number] = "" if decoded.is_silence else base.tokenizer.decode(decoded.ids)
                counts.append(
                    transcription_flops(
                        base.model, own, len(prefix), len(decoded.ids) + 1, remembered
                    )
                )
    parts = zip(*(astuple(count) for count in counts), strict=True)
    return Score(tuple(texts), TranscriptionFlops(*(sum(part) for part in parts)))


def dense_base(whisper: Whisper) -> SpeechBase:
    """The dense model in a base's clothes, to transcribe with."""
    return SpeechBase(whisper.model, whisper.tokenizer, whisper.rules, MixtureConfig(), "")


def split_base(whisper: Whisper, top_k: int, mels: Sequence[Tensor] | None) -> SpeechBase:
    """The encoder split, top-k of eight; fitted to the dense model on `mels` if there are any."""
    mixture = MixtureConfig(EXPERTS, SHARED_FRACTION, top_k, variant="split", decoder_top_k=EXPERTS)
    student = upcycle(copy.deepcopy(whisper.model), mixture)
    if mels is not None:
        fit_encoder(student, whisper.model, mels)
    return SpeechBase(student, whisper.tokenizer, whisper.rules, mixture, "")


def upcycled_base(whisper: Whisper, name: str) -> SpeechBase:
    """A function-preserving variant: as much arithmetic as the dense model, more to train."""
    mixture = mixture_named(name)
    student = upcycle(copy.deepcopy(whisper.model), mixture)
    return SpeechBase(student, whisper.tokenizer, whisper.rules, mixture, "")


def curve(
    runs: Sequence[Path], limit: int | None, progress: Callable[[str], object]
) -> list[dict[str, Any]]:
    """A row for each model and window, against the dense model in windows of at least 10 s."""
    whisper = load_whisper(resolve_checkpoint(None))
    clips = load_clips(limit)
    mels = short_mels([path for path, _ in clips_of(test=False, limit=limit)])
    others = short_mels(
        [
            path
            for language in OTHER_SPEAKERS
            for path in sorted((SHARED / "speech" / language).glob("*.flac"))[:limit]
        ]
    )
    dense = dense_base(whisper)
    makers: list[tuple[str, Sequence[str], Callable[[], SpeechBase]]] = [
        ("dense", list(WINDOWS), lambda: dense)
    ]
    for name in COPIES:
        makers.append((name, [CUT], partial(upcycled_base, whisper, name)))
    for top_k in TOP_KS:
        makers.append(("split", [CUT], partial(split_base, whisper, top_k, None)))
        makers.append(("fitted", [CUT, SHORT], partial(split_base, whisper, top_k, mels)))
        makers.append(("fitted, others", [SHORT], partial(split_base, whisper, top_k, others)))
    makers += [
        ("distilled", list(WINDOWS)[1:], partial(load_base, run / BASE_FOLDER)) for run in runs
    ]
    rows, scores = [], []
    for name, windows, make in makers:
        base = make()
        share = active_share(base.model.model.encoder.layers[0])
        for window in windows:
            scores.append(score(base, clips, window))
            rows.append({"model": name, "window": window, "active_share": round(share, 3)})
            progress(f"{name}, {window}, {share:.0%} of the units")
    reference = scores[1]
    return [row | _compared(clips, each, reference) for row, each in zip(rows, scores, strict=True)]


def _compared(clips: Sequence[Clip], each: Score, reference: Score) -> dict[str, Any]:
    spoken_s = sum(clip.duration_s for clip in clips)
    texts = [clip.text for clip in clips]
    low, high = _interval(texts, each.texts, reference.texts)
    return {
        "gflops_per_s": round(each.flops.total / spoken_s / 1e9, 3),
        "flops_ratio": round(each.flops.total / reference.flops.total, 3),
        "wer": round(100 * word_error_rate(texts, each.texts), 2),
        "extra_wer": round(
            100 * (word_error_rate(texts, each.texts) - word_error_rate(texts, reference.texts)), 2
        ),
        "extra_wer_low": low,
        "extra_wer_high": high,
        "parts": {
            name: round(count / each.flops.total, 3) for name, count in asdict(each.flops).items()
        },
    }


def _interval(
    texts: Sequence[str], heard: Sequence[str], reference: Sequence[str]
) -> tuple[float, float]:
    """95 % interval of the WER difference, clips drawn with replacement, in points."""
    words = [len(normalise(text).split()) for text in texts]
    extra = [
        (word_error_rate([t], [h]) - word_error_rate([t], [r])) * n if n else 0.0
        for t, h, r, n in zip(texts, heard, reference, words, strict=True)
    ]
    source = random.Random(0)
    drawn = []
    for _ in range(RESAMPLES):
        chosen = source.choices(range(len(texts)), k=len(texts))
        drawn.append(100 * sum(extra[i] for i in chosen) / sum(words[i] for i in chosen))
    drawn.sort()
    return round(drawn[RESAMPLES // 40], 2), round(drawn[-RESAMPLES // 40 - 1], 2)


def headline(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The cheapest mixture within the allowed extra word errors, against dense in its windows.

    `dense_in_its_window` is what shorter windows alone give: only the rest is the mixture's doing.
    """
    allowed = [
        row for row in rows if row["model"] != "dense" and row["extra_wer"] <= MOST_EXTRA_WER
    ]
    best = min(allowed, key=lambda row: float(row["flops_ratio"]), default=None)
    dense = {row["window"]: row["flops_ratio"] for row in rows if row["model"] == "dense"}
    return {
        "metric": "FLOPs per second of speech ÷ dense in windows ≥ 10 s, cheapest mixture "
        f"at ≤ +{MOST_EXTRA_WER} WER",
        "value": None if best is None else best["flops_ratio"],
        "target": TARGET,
        "met": best is not None and best["flops_ratio"] <= TARGET,
        "dense_in_its_window": None if best is None else dense[best["window"]],
    }


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Word error rate against FLOPs, one line a kind of model, one mark a window."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

    figure, axes = pyplot.subplots(figsize=(8, 5.5), layout="constrained")
    lines: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        lines[row["model"], row["window"] if row["model"] != "dense" else ""].append(row)
    for (model, window), members in lines.items():
        x = [row["gflops_per_s"] for row in members]
        y = [row["wer"] for row in members]
        axes.plot(x, y, marker="o", label=f"{model}, {window}" if window else model)
        for row in members:
            whole = model in (*COPIES, "dense")
            told = row["window"] if whole else f"{row['active_share']:.0%}"
            at = (row["gflops_per_s"], row["wer"])
            axes.annotate(told, at, xytext=(4, 4), textcoords="offset points", fontsize=7)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    for axis, marks in ((axes.xaxis, (2, 3, 4, 6, 10, 16)), (axes.yaxis, (8, 10, 15, 20, 30, 60))):
        axis.set_major_locator(FixedLocator(marks))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("GFLOPs per second of speech")
    axes.set_ylabel("word error rate, %")
    axes.set_title("tiny.en on held-out clips; per cent beside a mark: units active in the encoder")
    axes.title.set_fontsize(9)
    axes.legend(fontsize=8)
    axes.grid(visible=True, which="both", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def copy_training_clips(folder: Path) -> None:
    """Copy the clips that do not test into a folder, for `auricle base distil`."""
    folder.mkdir(parents=True, exist_ok=True)
    for path, _ in clips_of(test=False):
        shutil.copyfile(path, folder / path.name)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--run", type=Path, action="append", default=[], help="distilled folder")
    parser.add_argument("--plot", type=Path, help="write the curve as PNG (extra: plots)")
    parser.add_argument("--limit", type=int, help="use only the first clips")
    parser.add_argument("--repeats", type=int, default=9, help="timed turns")
    parser.add_argument("--training-clips", type=Path, metavar="FOLDER", help="copy and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.training_clips:
        copy_training_clips(arguments.training_clips)
        return
    rows = curve(arguments.run, arguments.limit, partial(print, file=sys.stderr))
    times = encoder_times(arguments.repeats)
    result = {"rows": rows, "times": times, "headline": headline(rows)}
    if arguments.plot:
        plot(rows, arguments.plot)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in [*rows, *times]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
