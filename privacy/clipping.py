"""Clipping by groups of numbers, and a clipping norm that adapts under its own share of the budget.

Shapes: S subjects, D trainable numbers, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from privacy.errors import AccountingError, PlanError
from privacy.mechanism import clip_and_sum
from privacy.random_source import RandomSource

_BIT_SENSITIVITY = 0.5


@dataclass(frozen=True)
class Group:
    """Numbers `start` to `stop` - 1 of an update, clipped together to L2 norm `clipping_norm`."""

    start: int
    stop: int
    clipping_norm: float


def group_sensitivity(groups: Sequence[Group]) -> float:
    """L2 sensitivity √ΣC_l² of a sum clipped by groups; the clipping norm to put in a plan."""
    return math.hypot(*(group.clipping_norm for group in groups))


def clip_groups_and_sum(
    gradients_SD: torch.Tensor, groups: Sequence[Group]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of per-subject gradients, each group of each clipped to its own norm.

    One subject moves group l of the sum by at most C_l, and the groups share no number: it moves
    the sum by at most √ΣC_l² (McMahan et al. 2018, arXiv:1812.06210, per-layer clipping). Noise
    must be σ·√ΣC_l² on every number.

    Returns (sum_D, norms_SG), float64; norms before clipping are private. Raises PlanError unless
    the groups, in order, hold each of the D numbers once.
    """
    ends = [0, *(group.stop for group in groups)]
    starts = [*(group.start for group in groups), gradients_SD.shape[1]]
    empty = any(group.start >= group.stop for group in groups)
    if starts != ends or empty or any(not group.clipping_norm > 0 for group in groups):
        raise PlanError(
            "the groups do not hold each number of an update once, under positive norms",
            remedy="give groups in order, each starting where the one before it stops",
        )
    parts = [
        clip_and_sum(gradients_SD[:, group.start : group.stop], group.clipping_norm)
        for group in groups
    ]
    return torch.cat([part[0] for part in parts]), torch.stack([part[1] for part in parts], dim=1)


@dataclass(frozen=True)
class AdaptiveClipping:
    """A clipping norm that follows a quantile of the gradients' norms (Andrew et al. 2021).

    arXiv:1905.03871. Each round the number of subjects whose norm is within C is told with noise,
    and C moves by a factor e^(-η(b - γ)), where b is the told fraction. A subject adds b_u - ½ to
    the count, so that its sensitivity is ½. Sum and count are one Gaussian mechanism on the vector
    (Σ clip(g)/(C·z_Δ), Σ(b - ½)/σ_b); its noise multiplier z has z⁻² = z_Δ⁻² + (2σ_b)⁻²
    (theorem 1). What is accounted is z; the sum is noised with the larger z_Δ.

    Attributes:
        clipping_norm: C now.
        target_quantile: γ in (0, 1), fraction of subjects that shall be within C.
        count_noise: σ_b, standard deviation of the count's noise, in subjects.
        expected_lot: q·N̄, the public number that the count is divided by.
        learning_rate: η > 0.

    Raises PlanError when a field is out of range.
    """

    clipping_norm: float
    target_quantile: float
    count_noise: float
    expected_lot: float
    learning_rate: float = 0.2

    def __post_init__(self) -> None:
        """Check every range."""
        positive = (self.clipping_norm, self.count_noise, self.expected_lot, self.learning_rate)
        if not (all(0 < value < math.inf for value in positive) and 0 < self.target_quantile < 1):
            raise PlanError(
                "a constant of adaptive clipping is out of range",
                remedy="give positive constants and a quantile between 0 and 1",
            )

    def sum_noise_multiplier(self, noise_multiplier: float) -> float:
        """z_Δ for the sum, such that sum and count together cost `noise_multiplier`.

        Raises AccountingError where the count alone costs as much or more.
        """
        count_precision = (self.count_noise / _BIT_SENSITIVITY) ** -2
        precision = noise_multiplier**-2 - count_precision if noise_multiplier > 0 else 0.0
        if precision <= 0:
            raise AccountingError(
                "the count of unclipped subjects leaves nothing of the budget for the sum",
                remedy="give the count more noise than half the sum's multiplier",
            )
        return float(precision**-0.5)

    def after_round(self, norms_S: torch.Tensor, source: RandomSource) -> AdaptiveClipping:
        """The clipping for the next round, from this round's norms before clipping.

        The norms must be of exactly the subjects in this round's sum, one for each.
        """
        within = float((norms_S <= self.clipping_norm).sum())  # undefined norms are not within
        count = within - _BIT_SENSITIVITY * len(norms_S)
        told = count + float(source.normal(1)) * self.count_noise
        fraction = min(1.0, max(0.0, told / self.expected_lot + _BIT_SENSITIVITY))
        factor = math.exp(-self.learning_rate * (fraction - self.target_quantile))
        return replace(self, clipping_norm=self.clipping_norm * factor)
