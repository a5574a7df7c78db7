"""Exact samples of the discrete Gaussian from random bytes: integers only, no rounding anywhere.

Canonne, Kamath and Steinke 2020, "The Discrete Gaussian for Differential Privacy"
(arXiv:2004.00010), algorithms 1 to 3. N_Z(0, σ²) gives the integer x a probability proportional to
exp(-x²/2σ²). Floating-point noise has a grid that can betray the value beneath it (Mironov 2012);
here every probability is a ratio of integers, compared with uniform integers.

Work per sample varies with the sample, so the time of a whole vector tells a little of its noise;
a vector's samples are drawn before anything is sent.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import numpy.typing as npt

_BLOCK_BYTES = 1 << 16


class ByteSource(Protocol):
    """Where the sampler's randomness comes from."""

    def random_bytes(self, size_bytes: int) -> bytes:
        """Uniform bytes, independent of every earlier call's."""
        ...


class _Uniform:
    """Uniform integers below any bound."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._block = b""
        self._used_bytes = 0

    def below(self, bound: int) -> int:
        """An integer in 0..bound-1, each exactly as likely: by rejection."""
        bits = (bound - 1).bit_length()
        size_bytes = (bits + 7) // 8
        while True:
            if self._used_bytes + size_bytes > len(self._block):
                self._block = self._source.random_bytes(_BLOCK_BYTES)
                self._used_bytes = 0
            end = self._used_bytes + size_bytes
            value = int.from_bytes(self._block[self._used_bytes : end], "big")
            self._used_bytes = end
            value >>= 8 * size_bytes - bits
            if value < bound:
                return value


def sample(size: int, variance: int, source: ByteSource) -> npt.NDArray[np.int64]:
    """`size` independent values of N_Z(0, `variance`), int64.

    Args:
        variance: the parameter σ² > 0, an integer. It is also, for σ of 2 or more, the variance to
            better than 1e-30.

    Raises ValueError for a variance below 1 or so large that a value might not fit in 63 bits.
    """
    if not 1 <= variance < 1 << 112:
        raise ValueError("the variance must be at least 1 and under 2**112")
    uniform = _Uniform(source)
    scale = math.isqrt(variance) + 1
    return np.fromiter((_one(variance, scale, uniform) for _ in range(size)), np.int64, size)


def _one(variance: int, scale: int, uniform: _Uniform) -> int:
    # Algorithm 3: a discrete Laplace value, kept with probability exp(-(|y| - σ²/t)²/2σ²).
    denominator = 2 * variance * scale * scale
    while True:
        value = _laplace(scale, uniform)
        if _bernoulli_exp((abs(value) * scale - variance) ** 2, denominator, uniform):
            return value


def _laplace(scale: int, uniform: _Uniform) -> int:
    # Algorithm 2 with s = 1: probability proportional to exp(-|y|/t).
    while True:
        low = uniform.below(scale)
        if not _bernoulli_exp_within_one(low, scale, uniform):
            continue
        high = 0
        while _bernoulli_exp_within_one(1, 1, uniform):
            high += 1
        value = low + scale * high
        negative = uniform.below(2) == 1
        if not (negative and value == 0):  # zero would count twice
            return -value if negative else value


def _bernoulli_exp(numerator: int, denominator: int, uniform: _Uniform) -> bool:
    # Algorithm 1: True with probability exp(-numerator/denominator).
    whole, rest = divmod(numerator, denominator)
    for _ in range(whole):
        if not _bernoulli_exp_within_one(1, 1, uniform):
            return False
    return _bernoulli_exp_within_one(rest, denominator, uniform)


def _bernoulli_exp_within_one(numerator: int, denominator: int, uniform: _Uniform) -> bool:
    # The first k at which a Bernoulli(γ/k) fails is odd with probability exp(-γ), γ in [0, 1].
    k = 1
    while uniform.below(denominator * k) < numerator:
        k += 1
    return k % 2 == 1
