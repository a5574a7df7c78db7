"""Canaries: data planted at sites that must never be found outside them, and how to find it.

A leak need not be literal, so the detector also knows the forms that code turns data into without
meaning to hide it: base64 at every alignment, hexadecimal, UTF-16, hashes of names, samples as
int16 or float32, and whatever of this lies in a zlib, gzip or raw HTTP body.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping
from urllib.parse import quote

import numpy as np

SUBJECT = "canary-subject-77316"
WORD = "zyxocanaryphan"
FOLDER = "canary-folder-90824"
RATE_HZ = 16_000

_WINDOW_SAMPLES = 24
_STRIDE_SAMPLES = 800
_WINDOW_BYTES = 48
_STREAM_START = re.compile(rb"\x78[\x01\x5e\x9c\xda]|\x1f\x8b\x08")
_WINDOW_BITS_ANY = 47  # zlib or gzip, told by the stream's own header
_MAX_INFLATED_BYTES = 16 << 20


def canary_samples() -> np.ndarray:
    """A second of sound that occurs nowhere else: seeded noise, int16, 16 kHz."""
    source = np.random.default_rng(77316)
    return source.integers(-12000, 12000, RATE_HZ, dtype=np.int16)


@dataclasses.dataclass(frozen=True)
class Detector:
    """Finds planted data in bytes; `needles` are by what they would give away."""

    needles: Mapping[str, tuple[bytes, ...]]

    def found(self, data: bytes | bytearray) -> frozenset[str]:
        """Names of what `data` gives away, compressed streams in it included."""
        pieces = [bytes(data), *_inflated(bytes(data))]
        return frozenset(
            name
            for name, needles in self.needles.items()
            if any(needle in piece for piece in pieces for needle in needles)
        )


def make_detector(states: Mapping[str, bytes]) -> Detector:
    """A detector of the planted canaries, and of binary `states` by name (cached features)."""
    samples = canary_samples()
    spans = range(0, len(samples) - _WINDOW_SAMPLES, _STRIDE_SAMPLES)
    cuts = [samples[at : at + _WINDOW_SAMPLES] for at in spans]
    # The two scales that audio libraries give float samples: [-1, 1] and the integers' own.
    scales = (np.float32(1 / 32768), np.float32(1))
    floats = [cut.astype("<f4") * scale for cut in cuts for scale in scales]
    words = {"subject": SUBJECT, "transcript": WORD, "path": FOLDER}
    needles = {name: tuple(_text_forms(word)) for name, word in words.items()}
    needles["audio as int16"] = tuple(_all_forms(cut.astype("<i2").tobytes() for cut in cuts))
    needles["audio as float32"] = tuple(_all_forms(cut.tobytes() for cut in floats))
    for name, data in states.items():
        needles[name] = tuple(_all_forms(_distinct_windows(data)))
    return Detector(needles)


def _distinct_windows(data: bytes) -> Iterator[bytes]:
    for at in range(0, len(data) - _WINDOW_BYTES, 64 * _WINDOW_BYTES):
        window = data[at : at + _WINDOW_BYTES]
        if len(set(window)) > _WINDOW_BYTES // 3:  # zeros and other padding are anybody's
            yield window


def _text_forms(word: str) -> Iterator[bytes]:
    for text in (word, word.upper(), word.capitalize(), quote(word, safe="")):
        yield text.encode()
    yield from _all_forms([word.encode(), word.encode("utf-16-le")])
    digest = hashlib.sha256(word.encode())
    yield from (digest.digest(), digest.hexdigest().encode())


def _all_forms(pieces: Iterator[bytes] | list[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece
        yield piece.hex().encode()
        yield piece.hex().upper().encode()
        for pad in range(3):
            # The middle of the base64 of a text is the same wherever it stands, per alignment.
            inner = base64.b64encode(bytes(pad) + piece)[4:-4]
            yield inner
            yield inner.replace(b"+", b"-").replace(b"/", b"_")


def _inflated(data: bytes) -> Iterator[bytes]:
    for start in _STREAM_START.finditer(data):
        try:
            stream = zlib.decompressobj(_WINDOW_BITS_ANY)
            yield stream.decompress(data[start.start() :], _MAX_INFLATED_BYTES)
        except zlib.error:
            continue  # those two bytes were something else
