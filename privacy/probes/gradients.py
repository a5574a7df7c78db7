"""The two gradient probes: one subject moves the clipped sum by at most C, and nobody else's part.

They run the round's own step, at the round's own weights, on rows that the probe invents. Real
rows would turn "failed" into a message about a subject; invented ones make it a message about the
program. What real rows can break beyond that (who is who in the lot) the sampler probe checks.

One invented subject is loud: its loss is scaled until its gradient is far beyond C. Before and
after it come two quiet ones, within C. They are the same but for their loudness. Three sums:

    A  all three, two rows a microbatch, so that the loud one's two rows lie in two of them
    B  the quiet ones, each in a microbatch of its own
    L  the loud one alone, in one microbatch

    sensitivity             ‖A - B‖ ≤ C        no clipping, by row, by microbatch, by layer, ...
                            ‖L‖ ≥ C(1 - 2m)    the sum is neither divided nor clipped as a whole
                            ‖L‖ ≤ C(1 - m/2)   clipping does leave room for rounding
                            ‖B‖ = Σ norms > C  what is within C is left alone, and norms are true,
                                               in proportion to the loudness
    alone-equals-in-batch   ‖A - B - L‖ ≤ mC   no statistic, capacity or buffer shared by rows

with m the part of C that clipping leaves free for rounding. That takes five small passes through
the model, and two more where the quiet ones turn out too loud or too faint (`Loudness`).
Shapes: D trained numbers.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from torch import Tensor

_LOUD = 1e3  # times C
_FAR_BEYOND = 10.0  # times C: least that the loud subject must be
_QUIET = 0.75
_QUIET_BAND = (0.6, 0.9)  # times C
_FAINTER = 0.8  # times the first quiet one: together they are beyond C
_ALONE, _MIXED, _WHOLE = 1, 2, 2  # rows a microbatch of B, A and L
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


@dataclasses.dataclass
class Loudness:
    """What the probes of one round tell those of the next: an estimate that saves a pass.

    Nothing is believed because of it: a subject that it makes too loud or too faint is measured
    and scaled anew.

    Attributes:
        norm: of an invented subject's gradient at loudness 1.
    """

    norm: float = 1.0


Step = Callable[[Sequence[Invented], int], tuple[Tensor, Tensor]]
"""The round's step on invented subjects, with so many rows a microbatch: the clipped sum [D] and
the norms [U] before clipping."""


def gradient_checks(
    step: Step, clipping_norm: float, margin: float, seed: int, known: Loudness
) -> tuple[dict[str, bool], dict[str, bool]]:
    """Checks of "sensitivity" and of "alone-equals-in-batch".

    A token on the edge between two experts may fall to either with the rounding of a batch, which
    is rare and no fault of the step: a failure counts when other invented rows show it again.

    Args:
        step: see `Step`.
        clipping_norm: C of the plan.
        margin: m, the part of C that the step leaves free for rounding.
        seed: of the rows; public, such as the round's number.
        known: of earlier rounds; brought up to date.
    """
    for attempt in range(_ATTEMPTS):
        sensitivity, alone = _attempt(
            step, clipping_norm, margin, seed * _ATTEMPTS + attempt, known
        )
        if all((*sensitivity.values(), *alone.values())):
            break
    return sensitivity, alone


def _attempt(
    step: Step, norm: float, margin: float, seed: int, known: Loudness
) -> tuple[dict[str, bool], dict[str, bool]]:
    quiet = Invented(2 * seed + 1, rows=1)
    (quiet, fainter), rest_D, quiet_norms = _quiet_lot(step, norm, quiet, known)
    if not _is_quiet(quiet_norms[0], norm):
        return {"gradients-flow": False}, {}
    loud = Invented(2 * seed, rows=2, loudness=_LOUD * norm / known.norm)
    alone_D, loud_norms = step([loud], _WHOLE)
    if not _FAR_BEYOND * norm <= float(loud_norms[0]) < math.inf:
        return {"gradients-flow": False}, {}
    all_D, norms_3 = step([quiet, loud, fainter], _MIXED)
    moved, alone = (float(d_D.double().norm()) for d_D in (all_D - rest_D, alone_D))
    sensitivity = {
        "gradients-flow": True,
        "at-most-the-norm": moved <= norm * (1 + _BOUND_SLACK),
        "reaches-the-norm": alone >= norm * (1 - 2 * margin),
        "leaves-room": alone <= norm * (1 - margin / 2) * (1 + _BOUND_SLACK),
        "within-the-norm-untouched": _close(float(rest_D.double().norm()), sum(quiet_norms))
        and _close(quiet_norms[1], _FAINTER * quiet_norms[0]),
    }
    apart = float((all_D - rest_D - alone_D).double().norm())
    apart_norms = zip(
        norms_3.tolist(), [quiet_norms[0], float(loud_norms[0]), quiet_norms[1]], strict=True
    )
    in_batch = {
        "same-gradient": apart <= margin * norm,
        "same-norm": all(_close(together, alone) for together, alone in apart_norms),
    }
    return sensitivity, in_batch


def _quiet_lot(
    step: Step, norm: float, quiet: Invented, known: Loudness
) -> tuple[tuple[Invented, Invented], Tensor, list[float]]:
    """The quiet subjects, just loud enough to tell; their sum; and their norms."""
    for _ in range(_ATTEMPTS):
        quiet = dataclasses.replace(quiet, loudness=_QUIET * norm / known.norm)
        fainter = dataclasses.replace(quiet, loudness=_FAINTER * quiet.loudness)
        rest_D, norms_2 = step([quiet, fainter], _ALONE)
        norms = norms_2.tolist()
        if not 0 < norms[0] < math.inf:  # nor NaN
            break
        known.norm = norms[0] / quiet.loudness
        if _is_quiet(norms[0], norm):
            break
    return (quiet, fainter), rest_D, norms


def _is_quiet(value: float, norm: float) -> bool:
    return _QUIET_BAND[0] * norm <= value <= _QUIET_BAND[1] * norm


def _close(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=_NORM_TOLERANCE)
