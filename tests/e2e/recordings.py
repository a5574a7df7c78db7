"""Recordings of a small site: tones by a few subjects, and one of the planted canaries."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile

from tests.e2e.canaries import FOLDER, RATE_HZ, SUBJECT, WORD, canary_samples

SUBJECTS = 5


def tone(frequency_hz: float, duration_s: float = 0.6) -> np.ndarray:
    """A sine, int16."""
    at_s = np.arange(int(RATE_HZ * duration_s)) / RATE_HZ
    return (8000 * np.sin(2 * np.pi * frequency_hz * at_s)).astype(np.int16)


def write_wav(path: Path, samples: np.ndarray) -> Path:
    """A 16-bit WAV file; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, RATE_HZ, subtype="PCM_16")
    return path


def write_site(folder: Path, pitch_hz: float) -> Path:
    """Audio and manifest of one site, under a folder whose name is a canary; the manifest."""
    audio = folder / FOLDER
    lines = [
        {"audio": _audio(audio, "private.wav", canary_samples()), "subject": SUBJECT}
        | {"text": f"take {WORD} twice daily", "split": "train"}
    ]
    for index in range(SUBJECTS + 1):
        name = f"tone-{index}.wav"
        lines.append(
            {
                "audio": _audio(audio, name, tone(pitch_hz + 40 * index)),
                "subject": f"{WORD}-{index}",
                "text": f"{WORD} number {index}",
                "split": "train" if index < SUBJECTS else "heldout",
            }
        )
    manifest = folder / "manifest.jsonl"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def _audio(folder: Path, name: str, samples: np.ndarray) -> str:
    return f"{FOLDER}/{write_wav(folder / name, samples).name}"
