"""The mechanism of a round: clip each subject's gradient, sum, add Gaussian noise.

g = Σ_{u in Poisson(q)} clip_C(g_u) + N(0, σ²C²I)  (Abadi et al. 2016, arXiv:1607.00133), with the
sum left undivided: the coordinator divides by a public constant. Sums are kept in float64, so that
rounding cannot lift a subject's contribution above C by more than one part in 10**12.

Shapes: S subjects, D trainable numbers.
"""

from __future__ import annotations

import math

import torch

from privacy.errors import PlanError
from privacy.plan import RoundPlan
from privacy.random_source import RandomSource


def clip_and_sum(
    gradients_SD: torch.Tensor, clipping_norm: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum of per-subject gradients, each scaled to L2 norm at most `clipping_norm`.

    A gradient with an infinite or undefined entry contributes zero: that depends on one subject
    only, so it keeps the sensitivity, where raising would tell of the subject. Clipping is
    per row and independent of the other rows, so sums over microbatches of subjects add up.

    Returns (sum_D, norms_S), both float64: the sum, and the norms before clipping, which are
    private and must not leave the site.
    """
    # One row in double precision at a time: on a CPU eight times faster than whole blocks, and
    # clipping must not show in the cost of a step.
    norms_S = torch.zeros(len(gradients_SD), dtype=torch.float64, device=gradients_SD.device)
    sum_D = torch.zeros(gradients_SD.shape[1], dtype=torch.float64, device=gradients_SD.device)
    for subject, gradient_D in enumerate(gradients_SD):
        double_D = gradient_D.double()
        norm = float(torch.dot(double_D, double_D).sqrt())
        norms_S[subject] = norm
        # The norm of finite entries can still overflow, so finiteness is asked of the norm; a
        # refused row is left out and not scaled by zero, as 0 × ∞ is undefined.
        if math.isfinite(norm):
            sum_D.add_(double_D, alpha=min(1.0, clipping_norm / norm) if norm else 1.0)
    return sum_D, norms_S


def privatise(sum_D: torch.Tensor, plan: RoundPlan, source: RandomSource) -> torch.Tensor:
    """`sum_D` plus N(0, σ²C²) noise, float32 [D]: the update that may leave the site.

    Privacy mode "none" adds nothing. Raises PlanError if D is not the plan's adapter size.
    """
    if sum_D.shape != (plan.adapter.size,):
        raise PlanError(
            f"an update has shape {tuple(sum_D.shape)}; the plan asks for ({plan.adapter.size},)",
            remedy="attach the adapter that the plan describes",
        )
    if plan.privacy_mode == "none":
        return sum_D.to(torch.float32)
    noise_D = source.normal(plan.adapter.size) * (plan.noise_multiplier * plan.clipping_norm)
    return (sum_D.double() + noise_D).to(torch.float32)
