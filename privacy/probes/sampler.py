"""The sampler probe: each subject is in the lot with probability q, alone, and counts once.

Accounting for Poisson sampling while a program shuffles and cuts batches of a fixed size
understates ε, by several times at small q (Chua et al. 2024, arXiv:2403.17673; Annamalai et al.
2024, arXiv:2411.10614). Such lots show in their counts: a fixed size does not vary.

Shapes: C possible counts of a block, S steps of a bound.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence

import torch

from privacy.probes.bounds import ALPHA, binomial_holds
from privacy.random_source import RandomSource

_BLOCKS = 48
_MAX_BLOCK = 4096
_TYPICAL_VARIANCE = 8.0  # of a block's count: far enough from 0 for χ² to describe it


@dataclasses.dataclass(frozen=True)
class Sample:
    """One call of the sampler: `chosen` of `population` at `rate`."""

    population: int
    rate: float
    chosen: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class LotRow:
    """Whose a row of the lot is, and as whom the step clips it."""

    subject_id: int
    number: int


def sampler_checks(
    samples: Sequence[Sample],
    rate: float,
    *,
    eligible: Sequence[int],
    rows: Sequence[LotRow],
    cap: int,
    source: RandomSource,
) -> dict[str, bool]:
    """Whether each check holds.

    Args:
        samples: every sample drawn in this round.
        rate: q of the plan.
        eligible: ids of the subjects that could be drawn, in the sampler's order.
        rows: the rows that the step really trained on.
        cap: most rows of one subject.
        source: the sampler itself, to be watched on a population of the probe's own.
    """
    return _lot_checks(samples, rate, eligible, rows, cap) | law_checks(source, rate)


def _lot_checks(
    samples: Sequence[Sample],
    rate: float,
    eligible: Sequence[int],
    rows: Sequence[LotRow],
    cap: int,
) -> dict[str, bool]:
    once = len(samples) == 1 and (samples[0].population, samples[0].rate) == (len(eligible), rate)
    distinct = len(set(eligible)) == len(eligible)
    if not once:
        return {"sampled-once": False}
    chosen = samples[0].chosen
    valid = list(chosen) == sorted(set(chosen)) and all(0 <= i < len(eligible) for i in chosen)
    allowed = {eligible[index] for index in chosen} if valid else set()
    numbers_of: dict[int, set[int]] = {}
    subjects_of: dict[int, set[int]] = {}
    for row in rows:
        numbers_of.setdefault(row.subject_id, set()).add(row.number)
        subjects_of.setdefault(row.number, set()).add(row.subject_id)
    one_to_one = all(len(found) == 1 for found in (*numbers_of.values(), *subjects_of.values()))
    return {
        "sampled-once": True,
        "no-duplicates": valid and distinct,
        "rate": binomial_holds(len(chosen), len(eligible), rate),
        "only-the-sampled": numbers_of.keys() <= allowed,
        "one-number-a-subject": one_to_one,
        "capped": max(Counter(row.subject_id for row in rows).values(), default=0) <= cap,
    }


def law_checks(source: RandomSource, rate: float) -> dict[str, bool]:
    """Marginals, joint inclusion and spread of the sampler on blocks of the probe's own."""
    size = _block_size(rate)
    blocks = [source.poisson_sample(size, rate) for _ in range(_BLOCKS)]
    sound = all(
        list(block) == sorted(set(block)) and (not block or 0 <= block[0] <= block[-1] < size)
        for block in blocks
    )
    counts = [len(block) for block in blocks]
    half = size // 2
    early = sum(index < half for block in blocks for index in block)
    together = sum(len(set(a) & set(b)) for a, b in zip(blocks[::2], blocks[1::2], strict=True))
    neighbours = sum(
        sum(index % 2 == 0 and index + 1 in members for index in members)
        for members in map(set, blocks)
    )
    pairs = _BLOCKS * (size // 2)
    return {
        "blocks-sound": sound,
        "marginal": binomial_holds(sum(counts), _BLOCKS * size, rate)
        and binomial_holds(early, _BLOCKS * half, rate),
        "draws-independent": binomial_holds(together, (_BLOCKS // 2) * size, rate * rate),
        "subjects-independent": binomial_holds(neighbours, pairs, rate * rate),
        "size-varies": _spread_holds(counts, size, rate),
    }


def _block_size(rate: float) -> int:
    variance = rate * (1 - rate)
    return min(_MAX_BLOCK, math.ceil(_TYPICAL_VARIANCE / variance) if variance > 0 else 64)


def _spread_holds(counts: Sequence[int], size: int, rate: float) -> bool:
    """Whether counts of Binomial(size, rate) vary enough: P(Σ(c - np)² ≤ seen) > ALPHA.

    The chance is bounded by Chernoff, min over s of exp(s·seen)·E[exp(-s(c - np)²)]^K, with the
    expectation summed over the binomial itself, so that it holds at any rate.
    """
    if rate >= 1:
        return set(counts) == {size}
    seen = sum((count - size * rate) ** 2 for count in counts)
    count_C = torch.arange(size + 1, dtype=torch.float64)
    logit = math.log(rate) - math.log1p(-rate)
    log_weight_C = (
        math.lgamma(size + 1)
        - torch.lgamma(count_C + 1)
        - torch.lgamma(size - count_C + 1)
        + count_C * logit
        + size * math.log1p(-rate)
    )
    square_C = (count_C - size * rate) ** 2
    steps_S = torch.logspace(-3, 3, 40, dtype=torch.float64) / max(size * rate * (1 - rate), 1e-3)
    log_mean_S = torch.logsumexp(log_weight_C - steps_S[:, None] * square_C, dim=1)
    return float((steps_S * seen + len(counts) * log_mean_S).min()) > math.log(ALPHA)
