"""How much of a clip's silence must be heard: word errors and time of each rule for windows.

    python -m benchmarks.windows [--json] [--clips N]

tiny.en, greedy, float32, one thread, on the English clips of ../shared/speech (or
AURICLE_SHARED). A rule says how long the encoded window is, whether what follows is cut off or
remembered as silence (`model_core.silent_tail`), and whether doubtful texts are heard again in
30 s. The second table is the default against 30 s under noise, babble of six other clips, and
pauses; the third the default at other loudness. Seconds are CPU time in batches of 16. The headline
is the default's word errors ÷ those of Whisper's own 30 s, on all clips.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase, open_base
from model_core.cached_decoder import CachedDecoder
from model_core.decode import greedy
from model_core.evaluate import word_error_rate
from model_core.features import (
    CUT_MARGIN_S,
    FRAMES_PER_S,
    FRAMES_PER_STATE,
    MARGIN_S,
    MAX_WINDOW_S,
    MIN_CUT_WINDOW_S,
    encode_mel,
    log_mel,
    padding_bias,
    window_frames,
)
from model_core.silent_tail import TailedEncoder
from model_core.sound import quietest_pause

SHARED = Path(os.environ.get("AURICLE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
LONG_WORDS = 4
BATCH = 16
PAUSE_RMS = 1e-3  # -60 dBFS: a quiet room
TALKERS = 6
TARGET = 1.0


@dataclass(frozen=True)
class Rule:
    """How a clip is heard: a window of the clip and `margin_s`, `least_s` at least."""

    name: str
    margin_s: float
    least_s: float = 0.0
    remembered: bool = False
    again: bool = False


WHOLE = Rule("30 s, as Whisper", MAX_WINDOW_S)
DEFAULT = Rule("clip + 1 s, remembered, doubtful again: the default", MARGIN_S, 0, True, True)
RULES = (
    *(Rule(f"clip + {margin} s, cut", margin) for margin in (1.0, 2.0, 3.0, 5.0)),
    Rule("clip + 3 s and at least 10 s, cut", CUT_MARGIN_S, MIN_CUT_WINDOW_S),
    Rule("the same, doubtful again", CUT_MARGIN_S, MIN_CUT_WINDOW_S, again=True),
    WHOLE,
    Rule("clip + 3 s, remembered", 3.0, remembered=True),
    Rule("clip + 1 s, remembered", MARGIN_S, remembered=True),
    DEFAULT,
)


@dataclass(frozen=True)
class Heard:
    """Texts of all clips, how many did not end by themselves, and CPU seconds."""

    texts: tuple[str, ...]
    unended: int
    cpu_s: float


class Listener:
    """Hears clips by any rule."""

    def __init__(self, base: SpeechBase) -> None:
        self._base, self._decoder = base, CachedDecoder(base.model)
        self._tailed = TailedEncoder(base.model.model.encoder)

    @torch.inference_mode()
    def hear(self, clips: Sequence[Tensor], rule: Rule) -> Heard:
        """Transcribe every clip."""
        texts, unended = [""] * len(clips), 0
        started_s = time.process_time()
        windows = [max(len(clip) / RATE_HZ + rule.margin_s, rule.least_s) for clip in clips]
        waiting = sorted(range(len(clips)), key=windows.__getitem__)
        while waiting:
            doubtful: list[int] = []
            for start in range(0, len(waiting), BATCH):
                batch = waiting[start : start + BATCH]
                frames = [window_frames(min(windows[i], MAX_WINDOW_S)) for i in batch]
                for i, (text, doubted, ended) in zip(
                    batch, self._batch([clips[i] for i in batch], frames, rule), strict=True
                ):
                    texts[i] = text
                    if doubted and rule.again and windows[i] < MAX_WINDOW_S:
                        windows[i] = MAX_WINDOW_S
                        doubtful.append(i)
                    else:
                        unended += not ended
            waiting = doubtful
        return Heard(tuple(texts), unended, time.process_time() - started_s)

    def _batch(
        self, clips: Sequence[Tensor], frames: Sequence[int], rule: Rule
    ) -> list[tuple[str, bool, bool]]:
        base = self._base
        mel_BMT = log_mel(clips, max(frames) / FRAMES_PER_S)
        lengths = [count // FRAMES_PER_STATE for count in frames]
        if rule.remembered:
            states_BXD, bias_BX = self._tailed(mel_BMT, frames)
        else:
            states_BXD = encode_mel(base.model.model.encoder, mel_BMT, frames)
            bias_BX = padding_bias(lengths, states_BXD.shape[1])
        prefix = base.tokenizer.prefix("en")
        heard = []
        for each in greedy(self._decoder, base, states_BXD, prefix, lengths, bias_CS=bias_BX):
            text = "" if each.is_silence else base.tokenizer.decode(each.ids)
            heard.append((text, each.is_doubtful(text), each.complete))
        return heard


def white(clip: Tensor, snr_db: float, source: torch.Generator) -> Tensor:
    """The clip in Gaussian noise."""
    return mixed(clip, torch.randn(len(clip), generator=source), snr_db)


def mixed(clip: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """The clip with noise whose power is so far below its own."""
    gain = clip.square().mean() / noise.square().mean().clamp(min=1e-12) / 10 ** (snr_db / 10)
    return clip + gain.sqrt() * noise


def babble(clips: Sequence[Tensor], number: int) -> Tensor:
    """Six other clips at once, repeated to this one's length."""
    length = len(clips[number])
    others = [clips[(number + step + 1) % len(clips)] for step in range(TALKERS)]
    return torch.stack(
        [each.repeat(math.ceil(length / len(each)))[:length] for each in others]
    ).sum(0)


def paused(clip: Tensor, duration_s: float, source: torch.Generator) -> Tensor:
    """The clip with faint noise put in at its quietest moment."""
    at = quietest_pause(clip, 0)[0]
    faint = PAUSE_RMS * torch.randn(int(duration_s * RATE_HZ), generator=source)
    return torch.cat([clip[:at], faint, clip[at:]])


def conditions(clips: Sequence[Tensor]) -> dict[str, list[Tensor]]:
    """The clips under each disturbance."""
    source = torch.Generator().manual_seed(0)
    numbers = range(len(clips))
    return {
        "clean": list(clips),
        "white noise, 10 dB": [white(clip, 10, source) for clip in clips],
        "white noise, 5 dB": [white(clip, 5, source) for clip in clips],
        "babble, 10 dB": [mixed(clips[i], babble(clips, i), 10) for i in numbers],
        "a pause of 4 s inside": [paused(clip, 4, source) for clip in clips],
        "a pause of 8 s inside": [paused(clip, 8, source) for clip in clips],
    }


def at_level(gain_db: float) -> Callable[[Tensor], Tensor]:
    """Louder or quieter, clipped at full scale."""
    return lambda clip: (clip * 10 ** (gain_db / 20)).clamp(-1, 1)


def run(limit: int | None) -> dict[str, object]:
    """All three tables and the headline."""
    lines = (SHARED / "speech" / "en.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines][:limit]
    texts = [record["text"] for record in records]
    clips = [read_audio(SHARED / "speech" / record["audio"]) for record in records]
    listener = Listener(open_base("tiny.en"))
    long = [i for i, text in enumerate(texts) if len(text.split()) >= LONG_WORDS]

    def wer(heard: Heard, of: Sequence[int]) -> float:
        return 100 * word_error_rate([texts[i] for i in of], [heard.texts[i] for i in of])

    heard = {rule: listener.hear(clips, rule) for rule in RULES}
    rules = [
        {
            "rule": rule.name,
            "wer": round(wer(each, range(len(clips))), 2),
            "wer_four_words_or_more": round(wer(each, long), 2),
            "unended": each.unended,
            "cpu_s": round(each.cpu_s, 1),
        }
        for rule, each in heard.items()
    ]
    half = long[::2]
    said = [texts[i] for i in half]

    def errors(disturbed: Sequence[Tensor], rule: Rule) -> float:
        return round(100 * word_error_rate(said, listener.hear(disturbed, rule).texts), 2)

    chosen = [clips[i] for i in half]
    disturbed = [
        {"clips": name, "default": errors(made, DEFAULT), "30 s": errors(made, WHOLE)}
        for name, made in conditions(chosen).items()
    ]
    levels = [
        {"gain_db": gain_db, "wer": errors([at_level(gain_db)(clip) for clip in chosen], DEFAULT)}
        for gain_db in (0, -20, -30, -40, -50, 20)
    ]
    ratio = wer(heard[DEFAULT], range(len(clips))) / wer(heard[WHOLE], range(len(clips)))
    headline = {
        "metric": "word errors of the default windows ÷ those of 30 s, all clips",
        "value": round(ratio, 3),
        "target": TARGET,
        "met": ratio <= TARGET,
        "cpu_time_ratio": round(heard[DEFAULT].cpu_s / heard[WHOLE].cpu_s, 3),
    }
    return {"rules": rules, "disturbed": disturbed, "levels": levels, "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--clips", type=int, help="only the first so many")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = run(arguments.clips)
    if arguments.json:
        print(json.dumps(result))
        return
    for table in ("rules", "disturbed", "levels"):
        for row in result[table]:  # type: ignore[attr-defined]
            print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
