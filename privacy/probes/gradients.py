"""The two gradient probes: one subject moves the clipped sum by at most C, and nobody else's part.

They run the round's own step, at the round's own weights, on rows that the probe invents. Real
rows would turn "failed" into a message about a subject; invented ones make it a message about the
program. What real rows can break beyond that (who is who in the lot) the sampler probe checks.

One invented subject is loud: its loss is scaled until its gradient is far beyond C, and its rows
spread over several microbatches. Before and after it come two quiet ones, equal to each other and
at half of C. With A the sum of all three, B that of the quiet ones and L the loud one's:

    sensitivity             ‖A - B‖ ≤ C        no clipping, by row, by microbatch, by layer, ...
                            ‖L‖ ≥ C(1 - 2m)    the sum is neither divided nor clipped as a whole
                            ‖B‖ = C            what is within C is left alone
    alone-equals-in-batch   ‖A - B - L‖ ≤ mC   no statistic, capacity or buffer shared by rows

with m the part of C that clipping leaves free for rounding. Shapes: D trained numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from torch import Tensor

_LOUD = 1e3  # times C
_QUIET = 0.5
_NORM_TOLERANCE = 1e-4
_BOUND_SLACK = 1e-9
_ATTEMPTS = 2


@dataclasses.dataclass(frozen=True)
class Invented:
    """An invented subject of a step.

    Attributes:
        seed: says which rows are invented.
        rows: how many.
        loudness: factor of its loss.
    """

    seed: int
    rows: int
    loudness: float = 1.0


Step = Callable[[Sequence[Invented]], tuple[Tensor, Tensor]]
"""The round's step on invented subjects: the clipped sum [D] and the norms [U] before clipping."""


def gradient_checks(
    step: Step, clipping_norm: float, margin: float, seed: int
) -> tuple[dict[str, bool], dict[str, bool]]:
    """Checks of "sensitivity" and of "alone-equals-in-batch".

    A token on the edge between two experts may fall to either with the rounding of a batch, which
    is rare and no fault of the step: a failure counts when other invented rows show it again.

    Args:
        step: see `Step`.
        clipping_norm: C of the plan.
        margin: m, the part of C that the step leaves free for rounding.
        seed: of the rows; public, such as the round's number.
    """
    for attempt in range(_ATTEMPTS):
        sensitivity, alone = _attempt(step, clipping_norm, margin, seed * _ATTEMPTS + attempt)
        if all((*sensitivity.values(), *alone.values())):
            break
    return sensitivity, alone


def _attempt(
    step: Step, norm: float, margin: float, seed: int
) -> tuple[dict[str, bool], dict[str, bool]]:
    loud, quiet = Invented(2 * seed, rows=3), Invented(2 * seed + 1, rows=1)
    # How loud their gradients are at these weights, by the step's own account.
    raw_2 = step([loud, quiet])[1].tolist()
    if len(raw_2) != 2 or not all(math.isfinite(value) and value > 0 for value in raw_2):
        return {"gradients-flow": False}, {}
    loud = dataclasses.replace(loud, loudness=_LOUD * norm / raw_2[0])
    quiet = dataclasses.replace(quiet, loudness=_QUIET * norm / raw_2[1])
    all_D, norms_3 = step([quiet, loud, quiet])
    alone_D, loud_norm_1 = step([loud])
    rest_D, quiet_norms_2 = step([quiet, quiet])
    moved = float((all_D - rest_D).double().norm())
    quiet_norms = quiet_norms_2.tolist()
    sensitivity = {
        "gradients-flow": True,
        "at-most-the-norm": moved <= norm * (1 + _BOUND_SLACK),
        "reaches-the-norm": float(alone_D.double().norm()) >= norm * (1 - 2 * margin),
        "within-the-norm-untouched": _close(float(rest_D.double().norm()), 2 * _QUIET * norm)
        and all(_close(value, _QUIET * norm) for value in quiet_norms),
    }
    apart = float((all_D - rest_D - alone_D).double().norm())
    apart_norms = zip(
        norms_3.tolist(), [quiet_norms[0], float(loud_norm_1[0]), quiet_norms[1]], strict=True
    )
    in_batch = {
        "same-gradient": apart <= margin * norm,
        "same-norm": all(_close(together, alone) for together, alone in apart_norms),
    }
    return sensitivity, in_batch


def _close(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=_NORM_TOLERANCE)
