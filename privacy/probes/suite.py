"""All probes of one round, run on what the round really did. Shapes: D trained numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from privacy.plan import RoundPlan
from privacy.probes.gradients import Loudness, Step, gradient_checks
from privacy.probes.noise import NoiseMarks, noise_checks
from privacy.probes.observed import ObservedSource
from privacy.probes.receipt import NOT_APPLICABLE, ProbeReceipt, ProbeResult, outcome_of
from privacy.probes.sampler import LotRow, sampler_checks


@dataclasses.dataclass(frozen=True)
class ProbedRound:
    """What one round did, as the probes need it. Nothing of it is kept.

    Attributes:
        plan: the round's public constants.
        round: its number.
        step: the step, on invented subjects.
        margin: part of the clipping norm that the step leaves free for rounding.
        eligible: ids of the subjects that could be drawn, in the sampler's order.
        rows: the rows of the lot.
        sum_D: the clipped sum.
        update_D: the update that would leave.
        draws: the source, with what it gave.
        loudness: kept from round to round by whoever trains.
    """

    plan: RoundPlan
    round: int
    step: Step
    margin: float
    eligible: Sequence[int]
    rows: Sequence[LotRow]
    sum_D: Tensor  # noqa: N815 - shape suffix
    update_D: Tensor  # noqa: N815
    draws: ObservedSource
    loudness: Loudness


def probe(done: ProbedRound, marks: NoiseMarks) -> ProbeReceipt:
    """Run the four probes. The receipt says what failed; `require_passed` makes it stop."""
    plan, draws = done.plan, done.draws
    sensitivity, alone = gradient_checks(
        done.step, plan.clipping_norm, done.margin, done.round, done.loudness
    )
    largest = len({row.number for row in done.rows}) * plan.clipping_norm
    sensitivity["lot-bounded"] = float(done.sum_D.double().norm()) <= largest * (1 + 1e-9)
    results = [
        outcome_of("sensitivity", sensitivity),
        outcome_of("alone-equals-in-batch", alone),
    ]
    if plan.privacy_mode == "none":
        results += [ProbeResult(name, NOT_APPLICABLE) for name in ("noise", "sampler")]
        return ProbeReceipt(tuple(results))
    scale = plan.noise_multiplier * plan.clipping_norm
    noise = noise_checks(
        done.update_D, done.sum_D, scale, draws=draws.normals, source=draws.source, marks=marks
    )
    sampler = sampler_checks(
        draws.samples,
        plan.sampling_rate,
        eligible=done.eligible,
        rows=done.rows,
        cap=plan.max_utterances_per_subject,
        source=draws.source,
    )
    results += [outcome_of("noise", noise), outcome_of("sampler", sampler)]
    return ProbeReceipt(tuple(results))
