"""What a dense teacher says about recordings, kept so that a student can learn from it many times.

A lesson needs no transcript: its text is what the teacher itself writes (sequence-level
distillation, Kim and Rush 2016). The teacher hears the clip and 3 s, at least 10 s, the student
a shorter window, so what is learnt is also to do without the padding.

Shape suffixes: B batch, M mel bins, T mel frames, S encoder states, D width, P decoder positions.
"""

# Fields carry shape suffixes like every other tensor name.
# ruff: noqa: N815
from __future__ import annotations

import json
import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model_core.audio import RATE_HZ
from model_core.base import SpeechBase
from model_core.cached_decoder import CachedDecoder
from model_core.decode import greedy
from model_core.errors import WeightsError
from model_core.features import MAX_WINDOW_S, encode_mel, log_mel
from model_core.sound import is_silent
from model_core.transcribe import WINDOW_STEP_S, clip_window_s

MOST_TOKENS = 32
_TENSORS = ("mel_MT", "states_SD", "hidden_PD")


@dataclass(frozen=True)
class Lesson:
    """One clip as the teacher hears it.

    Attributes:
        mel_MT: float16, the student's window.
        states_SD: float16, the teacher's encoder states of that stretch.
        ids: decoder input: control prefix and the teacher's text, at most `MOST_TOKENS` of it.
        first: position of the first prediction, the last of the prefix.
        hidden_PD: float16, the teacher's decoder states there and after.
    """

    mel_MT: Tensor
    states_SD: Tensor
    ids: tuple[int, ...]
    first: int
    hidden_PD: Tensor


@dataclass(frozen=True)
class LessonBatch:
    """Lessons of one window length, stacked.

    Attributes:
        ids_BP: int64, padded with the end token.
        rows_N, positions_N: int64, where a prediction is asked for.
        hidden_ND: float32, the teacher's decoder states there.
    """

    mel_BMT: Tensor
    states_BSD: Tensor
    ids_BP: Tensor
    rows_N: Tensor
    positions_N: Tensor
    hidden_ND: Tensor


def student_window_s(samples: int, margin_s: float) -> float:
    """The clip and a margin, rounded up to the window step, at most 30 s; no least length."""
    steps = math.ceil((samples / RATE_HZ + margin_s) / WINDOW_STEP_S)
    return min(steps * WINDOW_STEP_S, MAX_WINDOW_S)


@torch.no_grad()
def make_lesson(
    teacher: SpeechBase, decoder: CachedDecoder, clip: Tensor, margin_s: float, language: str
) -> Lesson | None:
    """The teacher's lesson on one clip of at most 30 s: [N] at 16 kHz; None where it is silent.

    `decoder` is the teacher's, `language` the clip's. Raises AudioError (audio-too-long) and
    TextError (text-language).
    """
    if is_silent(clip):
        return None
    mel_bins, samples = teacher.model.config.num_mel_bins, len(clip)
    student_mel_MT = log_mel([clip], student_window_s(samples, margin_s), mel_bins)[0]
    window_s = max(clip_window_s(samples), student_window_s(samples, margin_s))
    mel_BMT = log_mel([clip], window_s, mel_bins)
    states_BSD = encode_mel(teacher.model.model.encoder, mel_BMT)
    prefix = teacher.tokenizer.prefix(language)
    written = greedy(decoder, teacher, states_BSD, prefix)[0].ids[:MOST_TOKENS]
    ids = (*prefix, *written)
    hidden_BPD = teacher.model.model.decoder(
        input_ids=torch.tensor([ids]), encoder_hidden_states=states_BSD, use_cache=False
    ).last_hidden_state
    first = len(prefix) - 1
    return Lesson(
        mel_MT=student_mel_MT.half(),
        states_SD=states_BSD[0, : student_mel_MT.shape[1] // 2].half(),
        ids=ids,
        first=first,
        hidden_PD=hidden_BPD[0, first:].half(),
    )


def make_lessons(
    teacher: SpeechBase,
    clips: Sequence[Tensor],
    margin_s: float,
    progress: Callable[[int], None] = lambda _: None,
    *,
    language: str = "en",
) -> list[Lesson]:
    """Lessons on all clips that are not silent, in order; `progress` hears how many are done."""
    lessons = []
    decoder = CachedDecoder(teacher.model)
    for number, clip in enumerate(clips, start=1):
        lesson = make_lesson(teacher, decoder, clip, margin_s, language)
        if lesson is not None:
            lessons.append(lesson)
        progress(number)
    return lessons


def save_lessons(lessons: Sequence[Lesson], path: Path) -> None:
    """Write lessons as one safetensors file, replaced as a whole."""
    tensors: dict[str, Tensor] = {}
    for number, lesson in enumerate(lessons):
        tensors |= {f"{number}.{name}": getattr(lesson, name) for name in _TENSORS}
        tensors[f"{number}.ids"] = torch.tensor(lesson.ids)
    partial = path.with_suffix(".partial")
    made = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(made, partial, {"first": json.dumps([lesson.first for lesson in lessons])})
    partial.replace(path)


def load_lessons(path: Path) -> list[Lesson]:
    """Read what `save_lessons` wrote. Raises WeightsError (weights-malformed)."""
    try:
        with safe_open(path, framework="pt") as file:
            firsts = json.loads(file.metadata()["first"])
        tensors = load_file(path)
        return [
            Lesson(
                ids=tuple(tensors[f"{number}.ids"].tolist()),
                first=int(first),
                **{name: tensors[f"{number}.{name}"] for name in _TENSORS},
            )
            for number, first in enumerate(firsts)
        ]
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"the lessons in {path} cannot be read: {type(error).__name__}",
            remedy="delete the file; they are made again from the recordings",
        ) from error


def batches(
    lessons: Sequence[Lesson], size: int, seed: int, first_batch: int = 0
) -> Iterator[list[Lesson]]:
    """Batches without end, of one window length each: a function of seed and number alone.

    So a run that resumes at `first_batch` sees what an uninterrupted one would have seen.
    """
    number = 0
    epoch = 0
    while True:
        for batch in _epoch(lessons, size, seed, epoch):
            if number >= first_batch:
                yield batch
            number += 1
        epoch += 1


def collate(batch: Sequence[Lesson], pad: int, device: torch.device) -> LessonBatch:
    """Stack lessons of one window length in float32 on a device."""
    longest = max(len(lesson.ids) for lesson in batch)
    ids_BP = torch.full((len(batch), longest), pad)
    rows: list[int] = []
    positions: list[int] = []
    for row, lesson in enumerate(batch):
        ids_BP[row, : len(lesson.ids)] = torch.tensor(lesson.ids)
        rows += [row] * len(lesson.hidden_PD)
        positions += range(lesson.first, len(lesson.ids))
    return LessonBatch(
        mel_BMT=torch.stack([lesson.mel_MT for lesson in batch]).to(device).float(),
        states_BSD=torch.stack([lesson.states_SD for lesson in batch]).to(device).float(),
        ids_BP=ids_BP.to(device),
        rows_N=torch.tensor(rows, device=device),
        positions_N=torch.tensor(positions, device=device),
        hidden_ND=torch.cat([lesson.hidden_PD for lesson in batch]).to(device).float(),
    )


def _epoch(lessons: Sequence[Lesson], size: int, seed: int, epoch: int) -> list[list[Lesson]]:
    source = random.Random(f"{seed} {epoch}")  # noqa: S311 - order of lessons, no secret
    by_length: dict[int, list[Lesson]] = defaultdict(list)
    for lesson in lessons:
        by_length[len(lesson.states_SD)].append(lesson)
    made = []
    for members in by_length.values():
        source.shuffle(members)
        made += [members[start : start + size] for start in range(0, len(members), size)]
    source.shuffle(made)
    return made
