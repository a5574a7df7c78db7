"""The noise probe: what was added to a round's sum is fresh Gaussian noise of the right size.

It looks at the noise that is really there, update minus sum, and at the draw that the source says
it made; both must tell the same. The kinds of fault are those found in real libraries: a wrong
scale, another law, values that repeat within a draw, a generator that starts again (Tramèr et al.
2022, arXiv:2202.12219, section 3; Annamalai et al. 2024 and Ganev et al. 2025 on implementations).

Shapes: D numbers of an update, N of a draw.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from privacy.probes.bounds import (
    binomial_holds,
    chi_square_holds,
    distribution_limit,
    gaussian_limit,
    quadratic_limit,
)
from privacy.random_source import RandomSource

_BANDS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0)  # |z| below each: tails and shoulders of the law
_LAGS = (1, 2, 3, 4)
_FRESH_VALUES = 2048
_MARKED_VALUES = 16
_FLOAT32_ROUNDING = 2.0**-23


class NoiseMarks(Protocol):
    """Remembers keyed marks of the noise of earlier rounds, past restarts. Tells nothing of it."""

    def key(self) -> bytes:
        """The 32 byte secret under which this site makes its marks."""
        ...

    def note(self, marks: Sequence[str]) -> bool:
        """Keep `marks` durably; False where one of them was there before."""
        ...


def noise_checks(
    update_D: Tensor,
    sum_D: Tensor,
    scale: float,
    *,
    draws: Sequence[Tensor],
    source: RandomSource,
    marks: NoiseMarks,
) -> dict[str, bool]:
    """Whether each check holds for `update_D` = `sum_D` + scale · z.

    Args:
        update_D: the update as it would leave, float32.
        sum_D: the clipped sum before noise, float64.
        scale: σC, > 0.
        draws: every Gaussian draw of this round, as the source gave it.
        source: where two more draws come from, to be compared with each other and with z.
        marks: of earlier rounds' noise.
    """
    z_D = (update_D.double() - sum_D) / scale
    whole = bool(torch.isfinite(z_D).all())
    checks = {"finite": whole}
    if not whole:
        return checks
    checks |= law_checks(z_D)
    checks |= _origin_checks(z_D, update_D, scale, draws)
    fresh = [source.normal(_FRESH_VALUES).double() for _ in range(2)]
    checks["two-draws-differ"] = _unrelated(fresh[0], fresh[1]) and all(
        _unrelated(draw, z_D) for draw in fresh
    )
    # An update may be too short to show its law; these are not.
    checks["source-law"] = all(law_checks(torch.cat(fresh)).values())
    checks["never-drawn-before"] = marks.note(_marks_of(draws, marks.key())) if draws else False
    return checks


def law_checks(z_N: Tensor) -> dict[str, bool]:
    """Mean, variance, shape, tails and independence of standard Gaussian values.

    "tails" counts the values within ±0.25 … ±3 (what a kurtosis sums up in one number) with a
    bound that holds for any N; "independence" is the autocorrelation at lags 1 to 4 and of halves.
    """
    count = len(z_N)
    total = float(torch.dot(z_N, z_N))
    sorted_N = z_N.sort().values
    expected_N = torch.special.ndtr(sorted_N)
    rank_N = torch.arange(count, dtype=torch.float64)
    above = float(((rank_N + 1) / count - expected_N).max())
    below = float((expected_N - rank_N / count).max())
    return {
        "mean": abs(float(z_N.sum())) / math.sqrt(count) <= gaussian_limit(),
        "variance": chi_square_holds(total, count),
        "shape": max(above, below) <= distribution_limit(count),
        "tails": all(
            binomial_holds(int((z_N.abs() < band).sum()), count, math.erf(band / math.sqrt(2)))
            for band in _BANDS
        ),
        "independence": all(
            abs(float(torch.dot(z_N[:-lag], z_N[lag:])))
            <= quadratic_limit(math.sqrt((count - lag) / 2), 1.0)
            for lag in (*_LAGS, count // 2)
            if 0 < lag < count
        ),
    }


def _origin_checks(
    z_D: Tensor, update_D: Tensor, scale: float, draws: Sequence[Tensor]
) -> dict[str, bool]:
    """One draw, of D float64 values of the source's, and it is what lies on the sum."""
    drawn_once = len(draws) == 1 and draws[0].shape == z_D.shape
    if not drawn_once:
        return {"drawn-once": False}
    # Half a unit in the last place of a float32 number, beside the noise's own double rounding.
    slack_D = _FLOAT32_ROUNDING * update_D.double().abs() / scale + 1e-9
    return {
        "drawn-once": True,
        "double-precision": draws[0].dtype == torch.float64,
        "is-the-draw": bool(((z_D - draws[0].double()).abs() <= slack_D).all()),
    }


def _unrelated(a_N: Tensor, b_N: Tensor) -> bool:
    """Whether two Gaussian draws are uncorrelated; a draw against itself gives its length."""
    count = min(len(a_N), len(b_N))
    product = float(torch.dot(a_N[:count], b_N[:count]))
    # aᵀb is a quadratic form of the stacked 2N values with eigenvalues ±1/2.
    return abs(product) <= quadratic_limit(math.sqrt(count / 2), 0.5) and not torch.equal(
        a_N[:count], b_N[:count]
    )


def _marks_of(draws: Sequence[Tensor], key: bytes) -> list[str]:
    """HMAC-SHA256 of the first and of the last values of each draw, cut to 128 bits."""
    ends = [part for draw in draws for part in (draw[:_MARKED_VALUES], draw[-_MARKED_VALUES:])]
    marks = [
        hmac.new(key, part.double().contiguous().numpy().tobytes(), hashlib.sha256).hexdigest()[:32]
        for part in ends
    ]
    return list(dict.fromkeys(marks))
