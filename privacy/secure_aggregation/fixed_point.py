"""Updates as integers: noise, then a fixed-point grid, then words mod 2^w for masking.

A site sends x = clamp(round((Σ_u clip_C(g_u) + N(0, σ²C²I)) / s)) with a step s that is a public
power of two, at least `FINENESS` times smaller than the noise's standard deviation σC.

No wrap-around: |x_j| ≤ B = ⌊(2^(w-1) - 1) / n⌋ by the clamp, whatever the data, so the sum over at
most n sites is within ±(2^(w-1) - 1) and is read back from its residue mod 2^w exactly. The step is
chosen so that B·s is above what a site within the plan's bounds can reach: C for each subject of a
lot of twice the plan's size and its Poisson tail, plus 12 standard deviations of noise
(P < 4e-33 a number). A site beyond that is clamped, which is post-processing.

What rounding does to the guarantees. Locally nothing: x is a function of the noisy update, so ε_loc
is that of the plan's Gaussian mechanism. Of the sum, Σ round(y_i) is not a function of Σ y_i, yet
as good as one: given Σ y_i, the y_i of two or more honest sites still spread by σC/√2 or more, so
their fractional parts on the grid are uniform and independent of the data but for a total variation
of at most 4·exp(-2π²·(FINENESS)²/2) a number (Poisson summation: the wrapped Gaussian's Fourier
coefficients), below 10^-70,000,000 for FINENESS = 4096. Rounding is then a randomised function of
Σ y_i alone, post-processing again, and ε_sec is that of the Gaussian mechanism with √h·σ.

Shape legend: D = trainable numbers.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from privacy.errors import PlanError
from privacy.plan import RoundPlan
from privacy.random_source import RandomSource
from privacy.secure_aggregation.agreement import Words
from privacy.secure_aggregation.errors import require

FINENESS = 4096
INTEGER_BYTES = 8
_LOT_TAIL = 8.0
_NOISE_TAIL = 12.0
_EXACT_IN_FLOAT64 = 2**52


@dataclasses.dataclass(frozen=True)
class FixedPoint:
    """The grid of one plan.

    Attributes:
        step: s, the value of one unit; a power of two.
        word_bits: w, 32 or 64.
        sites: n, most updates in one sum.
    """

    step: float
    word_bits: int
    sites: int

    @classmethod
    def of(cls, plan: RoundPlan) -> Self:
        """The coarsest grid that is fine enough, in the smallest words that hold it.

        Raises PlanError for a plan whose bounds no word holds.
        """
        deviation = plan.noise_multiplier * plan.clipping_norm
        # By frexp and not by a logarithm, which rounds up to a whole number just below it.
        step = math.ldexp(0.5, math.frexp(deviation / FINENESS)[1])
        lot = 2 * plan.sampling_rate * plan.expected_subjects
        signal = plan.clipping_norm * (lot + _LOT_TAIL * math.sqrt(lot) + _LOT_TAIL)
        needed = (signal + _NOISE_TAIL * deviation) / step
        for word_bits in (32, 64):
            grid = cls(step, word_bits, len(plan.sites))
            if needed <= min(grid.bound, _EXACT_IN_FLOAT64):
                return grid
        raise PlanError(
            "the plan's lots are too large beside its noise for integers of 64 bits",
            remedy="raise the noise multiplier, or lower the sampling rate or expected subjects",
        )

    @property
    def bound(self) -> int:
        """B, most that one site's integer can be, in absolute value."""
        most: int = (2 ** (self.word_bits - 1) - 1) // self.sites
        return min(most, _EXACT_IN_FLOAT64)

    @property
    def word_bytes(self) -> int:
        """Bytes of one number of an update."""
        return self.word_bits // 8

    def to_words(self, integers_D: NDArray[np.int64]) -> Words:
        """Integers as residues mod 2^w. Raises SecureAggregationError "secure-input" beyond B."""
        inside = bool(np.all(np.abs(integers_D) <= self.bound))
        require(inside, "secure-input", "an integer is beyond the plan's bound")
        if self.word_bits == 32:
            return integers_D.astype(np.uint32)
        return integers_D.astype(np.uint64)

    def from_words(self, words_D: Words) -> NDArray[np.float64]:
        """The value of a sum of at most n updates, from its residues."""
        signed_D = words_D.view(np.int32 if self.word_bits == 32 else np.int64)
        return signed_D.astype(np.float64) * self.step

    def read(self, payload: bytes) -> Words:
        """Words [D] of a masked update; little-endian on every machine."""
        return np.frombuffer(payload, "<u4" if self.word_bits == 32 else "<u8")

    def write(self, words_D: Words) -> bytes:
        """The inverse of `read`."""
        return words_D.astype("<u4" if self.word_bits == 32 else "<u8", copy=False).tobytes()


def add_noise(sum_D: torch.Tensor, plan: RoundPlan, source: RandomSource) -> torch.Tensor:
    """`sum_D` plus N(0, σ²C²) noise, float64 [D]: not yet on the grid, which alone may round it.

    `sum_D` is the sum of gradients clipped to C, float64. Raises PlanError if D is not the plan's
    adapter size.
    """
    if sum_D.shape != (plan.adapter.size,):
        raise PlanError(
            f"an update has shape {tuple(sum_D.shape)}; the plan asks for ({plan.adapter.size},)",
            remedy="attach the adapter that the plan describes",
        )
    noise_D = source.normal(plan.adapter.size) * (plan.noise_multiplier * plan.clipping_norm)
    return sum_D.double() + noise_D


def to_integers(noisy_D: torch.Tensor, plan: RoundPlan) -> NDArray[np.int64]:
    """A noisy update on the plan's grid, within ±B; int64 [D]."""
    grid = FixedPoint.of(plan)
    units_D = torch.round(noisy_D / grid.step).clamp(-grid.bound, grid.bound)
    integers_D: NDArray[np.int64] = units_D.to(torch.int64).numpy()
    return integers_D


def pack_integers(integers_D: NDArray[np.int64]) -> bytes:
    """Integers as little-endian int64, as a trainer hands them to the masking."""
    return integers_D.astype("<i8", copy=False).tobytes()


def unpack_integers(data: bytes) -> NDArray[np.int64]:
    """The inverse of `pack_integers`."""
    return np.frombuffer(data, "<i8").astype(np.int64, copy=False)
