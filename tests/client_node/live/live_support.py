"""Stand-ins for the network and the ear, whose answers follow from the samples alone."""

from __future__ import annotations

import numpy as np

from client_node.live.events import Heard
from client_node.live.pcm import RATE_HZ
from model_core.words import Word

LOUD = 0.5


def loudness_network(framed: np.ndarray, state: np.ndarray) -> tuple[float, np.ndarray]:
    """Speech is whatever is loud."""
    return float(np.abs(framed[64:]).max() > 0.1), state


def sound(*stretches: tuple[float, float]) -> np.ndarray:
    """Samples of (seconds, level) stretches."""
    return np.concatenate(
        [np.full(int(seconds * RATE_HZ), level, np.float32) for seconds, level in stretches]
    )


class CountingEar:
    """Hears one word for every whole half second of loud sound; keeps what it was asked."""

    def __init__(self) -> None:
        self.terms: tuple[str, ...] = ()
        self.windows: list[tuple[str, int]] = []

    def listen(self, terms):
        self.terms = tuple(terms)
        return self

    def draft(self, samples_N):
        self.windows.append(("draft", len(samples_N)))
        return Heard(count_aloud(samples_N))

    def final(self, samples_N):
        self.windows.append(("final", len(samples_N)))
        text = count_aloud(samples_N)
        words = tuple(
            Word(index * 0.5, index * 0.5 + 0.5, word, 0.9)
            for index, word in enumerate(text.split())
        )
        return Heard(text, words, "r7")


def count_aloud(samples_N: np.ndarray) -> str:
    loud_s = float((np.abs(samples_N) > 0.1).sum()) / RATE_HZ
    return " ".join(f"word{number}" for number in range(int(loud_s / 0.5)))
