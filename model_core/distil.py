"""Distil a split model's encoder from its dense teacher, end to end; a killed run resumes exactly.

The student is an upcycled copy whose encoder was fitted layer by layer (`model_core.layer_fit`).
All of its encoder layers train, routers included; convolutions, decoder and vocabulary stay as
released. The loss has two parts: the encoder states' squared distance from the teacher's, each
channel over its own variance, and the decoder's Kullback-Leibler divergence from the teacher's
predictions while it reads the teacher's text (Hinton et al. 2015; Gandhi et al. 2023).

Progress is one safetensors file, replaced as a whole every so many steps: trained tensors, Adam's
moments, and the number of steps in the header. Batches are a function of the seed and that number,
so on one machine a killed run ends in the very weights of an uninterrupted one.

Shape suffixes: B batch, S encoder states, D width, N predictions, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration

from model_core.errors import WeightsError
from model_core.features import encode_mel
from model_core.lessons import Lesson, LessonBatch, batches, collate

PROGRESS_FILE = "progress.safetensors"
DELTA_FILE = "delta.safetensors"
DELTA_FORMAT = "auricle/delta/v1"
_VARIANCE_FLOOR = 1e-6


@dataclass(frozen=True)
class DistilConfig:
    """A distillation run.

    Attributes:
        steps: optimiser steps in all; 0 leaves the student as it was fitted.
        batch: most lessons a step; fewer where a window length is rare.
        learning_rate: at its highest, after `warm_up` of the steps; then half a cosine to zero.
        states_weight: of the encoder states' distance beside the divergence.
        most_gradient: norm to which a step's gradient is clipped.
        save_every: steps between saves.
        seed: of the order of lessons.
    """

    steps: int = 0
    batch: int = 8
    learning_rate: float = 1e-4
    warm_up: float = 0.05
    states_weight: float = 1.0
    most_gradient: float = 1.0
    save_every: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        """Check ranges. Raises WeightsError."""
        positive = min(self.batch, self.save_every) >= 1 and self.learning_rate > 0
        if not (positive and self.steps >= 0 and 0 <= self.warm_up < 1):
            raise WeightsError(
                f"a distillation of {self.steps} steps with batches of {self.batch} cannot run",
                remedy="use positive numbers, at least no steps, and a warm-up below 1",
            )

    def rate(self, step: int) -> float:
        """Learning rate of step 0, 1, …"""
        rising = self.warm_up * self.steps
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        falling = (step - rising) / (self.steps - rising)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * falling))


@dataclass(frozen=True)
class StepReport:
    """Losses of one step, before its update: `step` counts from 1."""

    step: int
    states: float
    divergence: float


def trained_parameters(model: WhisperForConditionalGeneration) -> dict[str, nn.Parameter]:
    """The encoder's layers and last norm, by their names in the model."""
    prefixes = ("model.encoder.layers.", "model.encoder.layer_norm.")
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)}


def distil(
    student: WhisperForConditionalGeneration,
    lessons: Sequence[Lesson],
    config: DistilConfig,
    folder: Path,
    report: Callable[[StepReport], None] = lambda _: None,
) -> None:
    """Train the student's encoder in place, on the device that it is on; it ends up frozen.

    Goes on from `folder` where an earlier call with the same lessons, configuration and student was
    cut off. Raises WeightsError: `distil-mismatch` where the folder holds another run's progress.
    """
    if not lessons:
        raise WeightsError("no speech to distil with", remedy="give recordings")
    run = _Run(student, config, _identity(student, lessons, config), folder)
    device = next(student.parameters()).device
    pad = int(student.config.pad_token_id)
    variance_D = states_variance(lessons).to(device)
    first = run.resume()
    order = batches(lessons, config.batch, config.seed, first)
    for step, members in zip(range(first, config.steps), order, strict=False):
        batch = collate(members, pad, device)
        states, divergence = losses(student, batch, variance_D)
        run.update(config.states_weight * states + divergence, config.rate(step))
        report(StepReport(step + 1, float(states.detach()), float(divergence.detach())))
        if (step + 1) % config.save_every == 0 or step + 1 == config.steps:
            run.save(step + 1)
    student.requires_grad_(False)


def losses(
    student: WhisperForConditionalGeneration, batch: LessonBatch, variance_D: Tensor
) -> tuple[Tensor, Tensor]:
    """Mean squared distance of the states over their variance, and mean divergence a token."""
    states_BSD = encode_mel(student.model.encoder, batch.mel_BMT)
    distance = ((states_BSD - batch.states_BSD).square() / variance_D).mean()
    hidden_BPD = student.model.decoder(
        input_ids=batch.ids_BP, encoder_hidden_states=states_BSD, use_cache=False
    ).last_hidden_state
    said_NV = student.proj_out(hidden_BPD[batch.rows_N, batch.positions_N]).log_softmax(-1)
    with torch.no_grad():
        wanted_NV = student.proj_out(batch.hidden_ND).log_softmax(-1)
    divergence = functional.kl_div(said_NV, wanted_NV, log_target=True, reduction="batchmean")
    return distance, divergence


def states_variance(lessons: Sequence[Lesson]) -> Tensor:
    """Variance of each channel of the teacher's encoder states over all lessons: [D]."""
    total = sum(len(lesson.states_SD) for lesson in lessons)
    mean_D = sum(lesson.states_SD.double().sum(0) for lesson in lessons) / total
    square_D = sum((lesson.states_SD - mean_D).square().sum(0) for lesson in lessons) / total
    return torch.as_tensor(square_D).clamp(min=_VARIANCE_FLOOR).float()


def save_delta(model: WhisperForConditionalGeneration, path: Path) -> int:
    """Write the trained part in float16, rounding the model to it; returns the file's bytes."""
    tensors = {}
    with torch.no_grad():
        for name, parameter in trained_parameters(model).items():
            tensors[name] = parameter.half().cpu().contiguous()
            parameter.copy_(tensors[name])
    _replace(tensors, path, {"format": DELTA_FORMAT})
    return path.stat().st_size


def load_delta(model: WhisperForConditionalGeneration, path: Path) -> None:
    """Put a trained part into an upcycled model of the same mixture. Raises WeightsError."""
    try:
        tensors = load_file(path)
        parameters = trained_parameters(model)
        if {name: t.shape for name, t in tensors.items()} != {
            name: p.shape for name, p in parameters.items()
        }:
            raise ValueError("names or shapes differ")
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsError(
            f"{path} does not fit this model: {error}",
            remedy="upcycle the checkpoint with the mixture that the file was distilled for",
        ) from error
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


class _Run:
    """A student's optimiser and its progress on disk."""

    def __init__(
        self,
        student: WhisperForConditionalGeneration,
        config: DistilConfig,
        identity: str,
        folder: Path,
    ) -> None:
        self._parameters = trained_parameters(student)
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._adam = torch.optim.AdamW(self._parameters.values(), lr=config.learning_rate)
        self._config, self._identity = config, identity
        self._path = folder / PROGRESS_FILE
        folder.mkdir(parents=True, exist_ok=True)

    def update(self, loss: Tensor, rate: float) -> None:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._parameters.values(), self._config.most_gradient)
        for group in self._adam.param_groups:
            group["lr"] = rate
        self._adam.step()

    def save(self, step: int) -> None:
        tensors = {f"weight.{name}": p.detach() for name, p in self._parameters.items()}
        for name, parameter in self._parameters.items():
            for moment, value in self._adam.state[parameter].items():
                tensors[f"{moment}.{name}"] = value
        _replace(tensors, self._path, {"step": str(step), "identity": self._identity})

    def resume(self) -> int:
        """Load what an earlier call saved; returns the steps already done."""
        if not self._path.is_file():
            return 0
        with safe_open(self._path, framework="pt") as file:
            header = file.metadata() or {}
        if header.get("identity") != self._identity:
            raise WeightsError(
                f"{self._path} is the progress of another student, configuration or lessons",
                remedy="choose an empty folder",
                code="distil-mismatch",
            )
        tensors = load_file(self._path)
        moments = sorted({key.split(".", 1)[0] for key in tensors} - {"weight"})
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                state = {key: tensors[f"{key}.{name}"] for key in moments}
                # Adam's own step count stays where torch keeps it, on the CPU.
                self._adam.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device)
                    for key, value in state.items()
                }
        return int(header["step"])


def _identity(
    student: WhisperForConditionalGeneration, lessons: Sequence[Lesson], config: DistilConfig
) -> str:
    """Hex SHA-256 over the configuration, the student's first weights and the lessons."""
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
    for parameter in trained_parameters(student).values():
        digest.update(_bytes(parameter.detach()))
    for lesson in lessons:
        digest.update(_bytes(lesson.states_SD))
        digest.update(json.dumps(lesson.ids).encode())
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()


def _replace(tensors: Mapping[str, Tensor], path: Path, header: dict[str, str]) -> None:
    partial = path.with_suffix(".partial")
    save_file({key: t.detach().cpu().contiguous() for key, t in tensors.items()}, partial, header)
    partial.replace(path)
