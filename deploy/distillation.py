"""What a split base is distilled on: given recordings, and the demo's public synthetic speakers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import soxr
import torch
from torch import Tensor

from deploy.demo.corpus import public_utterances
from model_core.audio import RATE_HZ, read_audio

_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".webm"}


def training_recordings(audio: Sequence[Path], synthetic: int) -> list[Tensor]:
    """16 kHz mono samples of all files, of the audio files below all folders, and of speakers.

    Sorted by path within a folder, so the same command reads the same recordings. Synthetic
    speakers are the public ones, who belong to no site and say no term of any; they sound the same
    in every fresh process, whose state the synthesiser keeps. Raises AudioError and SynthesisError.
    """
    return [*(read_audio(path) for path in _files(audio)), *_speak(synthetic)]


def _files(audio: Sequence[Path]) -> Iterator[Path]:
    for path in audio:
        if path.is_dir():
            yield from sorted(p for p in path.rglob("*") if p.suffix.lower() in _SUFFIXES)
        else:
            yield path


def _speak(count: int) -> Iterator[Tensor]:
    if not count:
        return
    from deploy.demo.espeak import RATE_HZ as ESPEAK_RATE_HZ
    from deploy.demo.espeak import Espeak

    espeak = Espeak()
    for utterance in public_utterances(count):
        samples = espeak.say(utterance.text, utterance.voice)
        yield torch.from_numpy(soxr.resample(samples, ESPEAK_RATE_HZ, RATE_HZ)).float()
