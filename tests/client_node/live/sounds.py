"""Sounds that are no speech, 6 s each at 16 kHz, made from formulas."""

from __future__ import annotations

import numpy as np

from client_node.live.pcm import RATE_HZ

DURATION_S = 6
NOTES_HZ = (262, 330, 392, 523, 440, 349)


def no_speech() -> dict[str, np.ndarray]:
    """Name → samples [N] float32."""
    chance = np.random.default_rng(1)
    at_s = np.arange(DURATION_S * RATE_HZ) / RATE_HZ
    note_s = at_s[:RATE_HZ]
    hum = sum(np.sin(2 * np.pi * 50 * k * at_s) / k for k in (1, 2, 3, 5))
    melody = [
        sum(np.sin(2 * np.pi * f * k * note_s) / k for k in (1, 2, 3)) * np.exp(-3 * note_s)
        for f in NOTES_HZ
    ]
    vibrato = 1 + 0.4 * np.sin(2 * np.pi * 5 * note_s)
    chords = [
        sum(np.sin(2 * np.pi * f * m * note_s) for m in (1, 1.25, 1.5)) * vibrato for f in NOTES_HZ
    ]
    sounds = {
        "silence": np.zeros_like(at_s),
        "faint hiss": 0.001 * chance.normal(size=len(at_s)),
        "white noise": 0.1 * chance.normal(size=len(at_s)),
        "mains hum": 0.2 * hum,
        "melody": 0.2 * np.concatenate(melody),
        "chords": 0.1 * np.concatenate(chords),
        "rising tone": 0.3 * np.sin(2 * np.pi * (200 * at_s + 100 * at_s**2)),
        "keyboard": _keyboard(chance, len(at_s)),
    }
    return {name: samples.astype(np.float32) for name, samples in sounds.items()}


def _keyboard(chance: np.random.Generator, length: int) -> np.ndarray:
    """Some eight strokes a second: short bursts of noise that die away."""
    made = np.zeros(length)
    stroke = 800
    for start in chance.integers(0, length - stroke, DURATION_S * 8):
        made[start : start + stroke] += (
            0.3 * chance.normal(size=stroke) * np.exp(-np.arange(stroke) / 120)
        )
    return made
