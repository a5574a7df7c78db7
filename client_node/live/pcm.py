"""Raw PCM of any rate, in pieces of any length, to 16 kHz mono float32.

Shape suffix: N samples.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import soxr

from client_node.live.errors import LiveError

RATE_HZ = 16_000
LOWEST_RATE_HZ = 8_000
HIGHEST_RATE_HZ = 192_000
Encoding = Literal["s16le", "f32le"]
ENCODINGS: tuple[str, ...] = get_args(Encoding)
_SAMPLE_BYTES = {"s16le": 2, "f32le": 4}
_INT16_FULL_SCALE = 32768.0


class PcmReader:
    """Turns one stream's bytes into samples; a sample may be split between two pieces."""

    def __init__(self, encoding: str = "s16le", rate_hz: int = RATE_HZ) -> None:
        """Raises LiveError: `stream-encoding`, `stream-rate`."""
        if encoding not in ENCODINGS:
            raise LiveError(
                "the audio's encoding is not known",
                remedy=f"send mono PCM as {' or '.join(ENCODINGS)}",
                code="stream-encoding",
            )
        if not LOWEST_RATE_HZ <= rate_hz <= HIGHEST_RATE_HZ:
            raise LiveError(
                "the audio's rate is out of range",
                remedy=f"send {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ} samples a second",
                code="stream-rate",
            )
        self._encoding, self._sample_bytes = encoding, _SAMPLE_BYTES[encoding]
        self._rest = b""
        self._resampler = (
            None if rate_hz == RATE_HZ else soxr.ResampleStream(rate_hz, RATE_HZ, 1, quality="HQ")
        )

    def read(self, data: bytes) -> np.ndarray:
        """The samples [N] float32 in [-1, 1] that are ready.

        Resampling holds a few milliseconds back. Raises LiveError (stream-samples) for a sample
        that is no number.
        """
        data = self._rest + data
        whole = len(data) // self._sample_bytes * self._sample_bytes
        self._rest = data[whole:]
        return self._at_16_khz(self._floats(data[:whole]), last=False)

    def finish(self) -> np.ndarray:
        """The samples [N] that were held back. Raises LiveError (stream-samples) for half a one."""
        if self._rest:
            raise _bad_samples("the audio ends within a sample")
        return self._at_16_khz(np.zeros(0, np.float32), last=True)

    def _floats(self, data: bytes) -> np.ndarray:
        if self._encoding == "s16le":
            return np.frombuffer(data, "<i2").astype(np.float32) / np.float32(_INT16_FULL_SCALE)
        samples_N: np.ndarray = np.frombuffer(data, "<f4")
        if not np.isfinite(samples_N).all():
            raise _bad_samples("the audio has samples that are no numbers")
        return samples_N.astype(np.float32).clip(-1.0, 1.0)

    def _at_16_khz(self, samples_N: np.ndarray, *, last: bool) -> np.ndarray:
        if self._resampler is None:
            return samples_N
        return np.asarray(self._resampler.resample_chunk(samples_N, last=last), np.float32)


def _bad_samples(problem: str) -> LiveError:
    return LiveError(
        problem,
        remedy="send whole samples in the encoding that the opening names",
        code="stream-samples",
    )
