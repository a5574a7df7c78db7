"""The mechanism in integers, for sums that are masked modulo a power of two.

Each subject's gradient is clipped to C, scaled so that C becomes `units`, rounded to integers, and
its integer norm brought to at most `units` once more. The integers are summed, and each coordinate
of the sum gets discrete Gaussian noise (`privacy.discrete_gaussian`).

Sensitivity. Let z be a subject's rounded gradient and n² = Σ z_i², computed exactly in integers.
If n ≤ units, z is kept. Otherwise z_i becomes sign(z_i)·⌊|z_i|·units/⌈n⌉⌋. Since ⌊a⌋ ≤ a, its norm
is at most n·units/⌈n⌉ ≤ units. So every subject's vector is an integer vector of L2 norm at most
units =: Δ, whatever the floating-point steps before it did: adding or removing one moves the sum by
at most Δ, replacing one by at most 2Δ. Nothing in this argument is rounded. Rounding to nearest is
deterministic; a gradient clipped at C exceeds Δ by up to √D/2 and then loses up to one unit a
coordinate, so take units well above √D. (Kairouz, Liu and Steinke 2021, arXiv:2102.06387, round at
random until the norm is within a larger bound; that is unbiased and costs sensitivity.)

Accounting. Noise per coordinate is N_Z(0, s²). A vector's discrete Gaussian has no one-dimensional
dominating pair, so dp-accounting's distribution of it is not used, except in tests of one number.
Instead: x + round(N(0, s² - 1/12)) rounds x + N(0, s² - 1/12) when x is an integer, so it is
post-processing of the Gaussian mechanism, subsampled or not, and of its composition. Noise of both
kinds has the variance s², and the Kullback-Leibler divergence between them is 1.45e-6/s⁸ a
coordinate to leading order (their densities differ by the fourth cumulant of rounding, -1/120).
Over T rounds of D coordinates the total variation is, by Pinsker, τ ≤ √(T·D·3e-6/s⁸/2), twice
the leading term, and what is (ε, δ) for the Gaussian is (ε, δ + (1 + e^ε)·τ) for ours. A sum of h
such noises is N_Z(0, h·s²) up to the order of e^(-π²s²) (the same paper), nothing for s ≥ 64.

Shapes: S subjects, D trainable numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import torch

from privacy.accountant import ADD_OR_REMOVE_ONE, MechanismEvent, epsilon
from privacy.discrete_gaussian import ByteSource, sample
from privacy.errors import AccountingError, PlanError

MAX_UNITS = 1 << 24  # squares of sums of this size stay exact in int64
MIN_VARIANCE = 1 << 12
_ROUNDING_VARIANCE = 1 / 12
_DIVERGENCE = 3e-6  # of one coordinate's noise from a rounded Gaussian's, times s⁸
_DELTA_SHARE = 1e-3  # of δ, kept for the difference from the Gaussian
_WRAP_FAILURE = 2.0**-40


@dataclass(frozen=True)
class IntegerMechanism:
    """Public constants of the integer mechanism.

    Attributes:
        clipping_norm: C > 0, L2 bound of one subject's gradient.
        units: Δ, the integer norm that C becomes; 1 to 2**24.
        noise_multiplier: σ; the noise has the variance s² = ⌈σ²Δ²⌉, at least 2**12.
        size: D, trainable numbers.

    Raises PlanError when a field is out of range.
    """

    clipping_norm: float
    units: int
    noise_multiplier: float
    size: int

    def __post_init__(self) -> None:
        """Check every range."""
        _check(0 < self.clipping_norm < 1e6, "the clipping norm must be in (0, 1e6)")
        _check(1 <= self.units <= MAX_UNITS, f"units must be in 1 to {MAX_UNITS}")
        _check(0 < self.noise_multiplier < 1e4, "the noise multiplier must be in (0, 10000)")
        _check(1 <= self.size < 1 << 40, "the size must be at least 1")
        _check(self.variance >= MIN_VARIANCE, "the noise is too coarse: use more units")

    @property
    def variance(self) -> int:
        """s², variance of the noise of one coordinate, in square units."""
        return math.ceil((Fraction(self.noise_multiplier) * self.units) ** 2)

    def clip_and_sum(self, gradients_SD: torch.Tensor) -> torch.Tensor:
        """Sum [D], int64, of integer gradients of norm at most `units` each.

        A gradient without a finite norm contributes zero, as in `privacy.mechanism`.
        """
        sum_D = torch.zeros(gradients_SD.shape[1], dtype=torch.int64, device=gradients_SD.device)
        for gradient_D in gradients_SD:
            sum_D += self._integers(gradient_D.double())
        return sum_D

    def privatise(self, sum_D: torch.Tensor, source: ByteSource) -> torch.Tensor:
        """`sum_D` plus discrete Gaussian noise, int64 [D]. Raises PlanError for another size."""
        if sum_D.shape != (self.size,) or sum_D.dtype != torch.int64:
            raise _misfit(f"a sum is {tuple(sum_D.shape)} of {sum_D.dtype}, not {self.size} int64")
        noise_D = torch.from_numpy(sample(self.size, self.variance, source))
        return sum_D + noise_D.to(sum_D.device)

    def decode(self, sum_D: torch.Tensor) -> torch.Tensor:
        """A sum in units as gradients, float64 [D]."""
        return sum_D.double() * (self.clipping_norm / self.units)

    def require_no_wrap(self, modulus: int, sites: int, subjects_per_site: int) -> None:
        """Raise PlanError unless sums modulo `modulus` are the sums, but for 1 round in 2**40.

        Read as integers in [-modulus/2, modulus/2). One subject moves a coordinate by at most Δ;
        the noise of n sites is sub-Gaussian of variance n·s² (Canonne et al. 2020). Wrapping would
        harm the update, never privacy: it is post-processing.
        """
        tail = math.sqrt(2 * sites * self.variance * math.log(2 * self.size / _WRAP_FAILURE))
        needed = 2 * (sites * subjects_per_site * self.units + math.ceil(tail)) + 1
        _check(
            needed <= modulus,
            f"sums of {sites} sites of {subjects_per_site} subjects need a modulus of 2**"
            f"{(needed - 1).bit_length()}",
        )

    def event(
        self,
        sampling_rate: float,
        count: int = 1,
        adjacency: str = ADD_OR_REMOVE_ONE,
        honest_sites: int = 1,
    ) -> MechanismEvent:
        """The Gaussian event that accounts for `count` runs, but for `difference`."""
        deviation = math.sqrt(honest_sites * self.variance - _ROUNDING_VARIANCE)
        below = math.nextafter(deviation / self.units, 0)
        return MechanismEvent(sampling_rate, below, count, adjacency)

    def difference(self, rounds: int) -> float:
        """τ: total variation between `rounds` rounds of this noise and of a rounded Gaussian's."""
        return math.sqrt(rounds * self.size * _DIVERGENCE / 2) / self.variance**2

    def epsilon(
        self,
        sampling_rate: float,
        rounds: int,
        delta: float,
        adjacency: str = ADD_OR_REMOVE_ONE,
        honest_sites: int = 1,
    ) -> float:
        """ε of `rounds` rounds at `delta`; of the sum of `honest_sites` sites' noises.

        Raises AccountingError where the difference from the Gaussian is not negligible beside δ.
        """
        event = self.event(sampling_rate, rounds, adjacency, honest_sites)
        found = epsilon([event], delta * (1 - _DELTA_SHARE))
        log_slack = math.log(self.difference(rounds)) + math.log1p(math.exp(-found)) + found
        if log_slack > math.log(delta * _DELTA_SHARE):
            raise AccountingError(
                "the integer noise is too coarse to be accounted for at this δ",
                remedy="use more units",
            )
        return found

    def _integers(self, gradient_D: torch.Tensor) -> torch.Tensor:
        norm = float(torch.dot(gradient_D, gradient_D).sqrt())
        if not math.isfinite(norm):
            return torch.zeros(len(gradient_D), dtype=torch.int64, device=gradient_D.device)
        # C is the divisor of both terms apart, as units/C·row might overflow where row·C/norm
        # cannot; what rounding does here the integer norm below repairs.
        clipped_D = gradient_D * min(1.0, self.clipping_norm / norm) if norm else gradient_D
        integers_D = (clipped_D / self.clipping_norm * self.units).round().long()
        squared_norm = int((integers_D * integers_D).sum())
        if squared_norm <= self.units**2:
            return integers_D
        norm_up = math.isqrt(squared_norm - 1) + 1
        return torch.div(integers_D * self.units, norm_up, rounding_mode="trunc")


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise _misfit(what)


def _misfit(what: str) -> PlanError:
    return PlanError(what, remedy="correct the constants of the integer mechanism")
