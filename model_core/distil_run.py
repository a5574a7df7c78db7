"""From a dense checkpoint and recordings to a distilled split base, in a folder that resumes.

The folder fills in this order, and what is there is not made again: `run.json` (what the run is
of), `start.safetensors` (the student after the fit in closed form), with training also
`lessons.safetensors` (the teacher's answers) and `progress.safetensors`, then `delta.safetensors`
(the fitted or trained part in float16) and `base/` (all that a site needs).
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from model_core.base import SpeechBase, save_base
from model_core.distil import DELTA_FILE, DistilConfig, StepReport, distil, load_delta, save_delta
from model_core.errors import WeightsError
from model_core.features import log_mel
from model_core.layer_fit import fit_encoder
from model_core.lessons import (
    Lesson,
    load_lessons,
    make_lessons,
    save_lessons,
    student_window_s,
)
from model_core.sound import cut_at_pauses, is_silent
from model_core.upcycle import MixtureConfig, base_sha256, upcycle
from model_core.weights import Whisper

RUN_FILE, LESSONS_FILE, START_FILE = "run.json", "lessons.safetensors", "start.safetensors"
BASE_FOLDER = "base"
SPLIT = MixtureConfig(8, 0.25, 6, variant="split", decoder_top_k=8)
"""A quarter shared and six of eight experts in the encoder: the fewest that a fit alone bears
(docs/model.md). The decoder runs as released."""

_FIT_WINDOWS = 200  # about 30,000 positions, twenty for each unit of a tiny block


@dataclass(frozen=True)
class Progress:
    """How far a run is: `losses` in training alone."""

    stage: Literal["lessons", "training"]
    done: int
    total: int
    losses: StepReport | None = None


def distil_split(
    whisper: Whisper,
    recordings: Sequence[Tensor],
    folder: Path,
    *,
    mixture: MixtureConfig = SPLIT,
    config: DistilConfig | None = None,
    margin_s: float = 2.0,
    language: str = "en",
    report: Callable[[Progress], None] = lambda _: None,
) -> SpeechBase:
    """Split `whisper` by `mixture` and distil it on 16 kHz mono recordings of any length.

    Layer by layer in closed form, which takes a minute, then end to end for `config.steps`. The
    student learns in windows of the clip plus `margin_s`; a multilingual teacher is told the
    recordings' `language`. Trains on a GPU where there is one.
    Returns the base that is then in the folder, on the CPU. Raises WeightsError (`distil-mismatch`)
    where the folder holds another run, and TextError (`text-language`).
    """
    config = config or DistilConfig()
    clips = [clip[a:b] for clip in recordings for a, b in cut_at_pauses(clip)]
    teacher = SpeechBase(
        whisper.model, whisper.tokenizer, whisper.rules, mixture, base_sha256(whisper.model)
    )
    run = {
        "teacher_sha256": teacher.base_sha256,
        "recordings_sha256": _sha256(clips),
        "mixture": dataclasses.asdict(mixture),
        "training": dataclasses.asdict(config),
        "margin_s": margin_s,
        "language": language,
    }
    whisper.tokenizer.prefix(language)  # an unknown language is refused before the first file
    _claim(folder, run)
    student = upcycle(copy.deepcopy(whisper.model), mixture)
    _fit(folder / START_FILE, student, whisper.model, clips, margin_s)
    if config.steps:
        lessons = _lessons(folder, teacher, clips, margin_s, report, language=language)
        student.to("cuda" if torch.cuda.is_available() else "cpu")
        distil(
            student,
            lessons,
            config,
            folder,
            lambda step: report(Progress("training", step.step, config.steps, step)),
        )
        student.to("cpu")
    save_delta(student, folder / DELTA_FILE)
    base = dataclasses.replace(teacher, model=student, base_sha256=base_sha256(student))
    save_base(base, folder / BASE_FOLDER)
    return base


def _sha256(clips: Sequence[Tensor]) -> str:
    digest = hashlib.sha256()
    for clip in clips:
        digest.update(clip.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    path = folder / RUN_FILE
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run, indent=2), encoding="utf-8")
    elif json.loads(path.read_text(encoding="utf-8")) != run:
        raise WeightsError(
            f"{folder} holds a distillation of another model, recordings or settings",
            remedy="choose an empty folder, or give what run.json says",
            code="distil-mismatch",
        )


def _lessons(
    folder: Path,
    teacher: SpeechBase,
    clips: Sequence[Tensor],
    margin_s: float,
    report: Callable[[Progress], None],
    *,
    language: str,
) -> list[Lesson]:
    path = folder / LESSONS_FILE
    if not path.is_file():
        made = make_lessons(
            teacher,
            clips,
            margin_s,
            lambda done: report(Progress("lessons", done, len(clips))),
            language=language,
        )
        save_lessons(made, path)
    return load_lessons(path)


def _fit(
    path: Path,
    student: WhisperForConditionalGeneration,
    teacher: WhisperForConditionalGeneration,
    clips: Sequence[Tensor],
    margin_s: float,
) -> None:
    """Fit the student, and write it so that a resumed run starts from the very same."""
    if not path.is_file():
        spoken = [clip for clip in clips if not is_silent(clip)]
        chosen = spoken[:: max(1, len(spoken) // _FIT_WINDOWS)]
        mel_bins = student.config.num_mel_bins
        mels = [
            log_mel([clip], student_window_s(len(clip), margin_s), mel_bins)[0] for clip in chosen
        ]
        fit_encoder(student, teacher, mels)
        save_delta(student, path)
    load_delta(student, path)
