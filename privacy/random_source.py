"""Random numbers for the privacy mechanism: AES-256 in counter mode, a fresh key each call.

A general-purpose generator must not make privacy noise: its state can be recovered from outputs
(the 32-bit seeds of torch and numpy more so). Gaussian values are sums of four Box-Muller values
in float64, halved, so that the low bits of a released sum do not betray one value's grid
(Mironov 2012, doi:10.1145/2382196.2382264; Holohan and Braghin 2021, arXiv:2107.10138).

Shapes: [N] requested values; [4, N] independent Gaussian values summed to one.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from privacy.errors import AuricleError

_WORD_BYTES = 8
_SUMMED = 4


class RandomSource(Protocol):
    """What the mechanism draws from. Each call is independent of every other."""

    @property
    def name(self) -> str:
        """Name of the source for the ledger."""
        ...

    def normal(self, size: int) -> torch.Tensor:
        """Standard Gaussian values, float64, shape [size]."""
        ...

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        """Indices below `n`, ascending, each present independently with probability `rate`."""
        ...


class _KeystreamSource:
    """Gaussian and Bernoulli values from an AES-256-CTR keystream."""

    def _key(self) -> bytes:
        """32 key bytes, never the same twice."""
        raise NotImplementedError

    def _keystream(self, size_bytes: int) -> bytes:
        # A zero counter is safe only because no key serves two calls.
        cipher = Cipher(algorithms.AES256(self._key()), modes.CTR(bytes(16))).encryptor()
        return cipher.update(bytes(size_bytes))

    def _words(self, count: int) -> npt.NDArray[np.uint64]:
        return np.frombuffer(self._keystream(count * _WORD_BYTES), dtype="<u8")

    def random_bytes(self, size_bytes: int) -> bytes:
        """Uniform bytes, for samplers that compute with integers."""
        return self._keystream(size_bytes)

    def normal(self, size: int) -> torch.Tensor:
        """Standard Gaussian values, float64, shape [size]."""
        pairs = _SUMMED * size // 2
        words = self._words(2 * pairs)
        # Uniform in (0, 1): the 2**53 midpoints, exact in float64, so log never sees zero.
        uniforms = torch.from_numpy(((words >> np.uint64(11)) + 0.5) * 2.0**-53)
        radius = torch.sqrt(-2.0 * torch.log(uniforms[:pairs]))
        angle = 2.0 * math.pi * uniforms[pairs:]
        values = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)])
        return values.view(_SUMMED, size).sum(dim=0) / math.sqrt(_SUMMED)

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        """Indices below `n`, ascending, each present independently with probability `rate`.

        The probability is `rate` rounded down to a multiple of 2**-64, never above it. Raises
        ValueError unless 0 < rate <= 1.
        """
        if not 0 < rate <= 1:
            raise ValueError("the sampling rate must be in (0, 1]")
        threshold = int(rate * 2.0**64)
        if threshold == 0:
            return []
        chosen = self._words(n) <= np.uint64(threshold - 1)
        return [int(index) for index in np.flatnonzero(chosen)]


class SystemRandomSource(_KeystreamSource):
    """The source for real rounds: each call is keyed by the operating system."""

    name = "os.urandom+aes-256-ctr"

    def _key(self) -> bytes:
        return os.urandom(32)


class DeterministicRandomSource(_KeystreamSource):
    """Repeatable source for tests. Noise from it protects nobody.

    Raises AuricleError (code "random-source-unsafe") unless `for_tests` is True.
    """

    name = "deterministic-for-tests"

    def __init__(self, seed: bytes, *, for_tests: bool = False) -> None:
        if not for_tests:
            raise AuricleError(
                "a deterministic random source was asked for outside a test",
                remedy="use SystemRandomSource for anything that touches real data",
                code="random-source-unsafe",
            )
        self._seed = hashlib.sha256(seed).digest()
        self._calls = 0

    def _key(self) -> bytes:
        self._calls += 1
        return hashlib.sha256(self._seed + self._calls.to_bytes(8, "big")).digest()
