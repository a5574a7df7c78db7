"""Robust aggregation: a few hostile sites cannot move the result without bound.

Three rules over the updates g_1..g_m of a round, of which at most f are hostile:

- "median": the coordinate-wise median (Yin et al. 2018, definition 1), for f < m / 2;
- "trimmed-mean": per coordinate the mean without the f largest and f smallest values (Yin et al.
  2018, definition 2), for 2f < m;
- "krum": the one update nearest to its m - f - 2 nearest others in squared distance (Blanchard et
  al. 2017, section 4), for 2f + 2 < m; ties go to the first in the order given.

Each gives the location of one site's update; times m it stands for their sum. All are
post-processing of noisy updates, and none is a function of their sum: what that means for ε, and
what it costs in noise, is in docs/privacy.md. None can be computed from a running sum either. The
updates are spooled to an unnamed temporary file and read back a slice of coordinates of all sites
at a time, so that memory is two vectors and `SLICE_BYTES`, however many sites there are.

Shape legend: M = admitted updates, D = trainable numbers, K = coordinates of one slice.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from coordinator.aggregate import FLOAT32_BYTES, Gradient, aggregate, unpack
from privacy.plan import AggregationSpec, RoundPlan

SLICE_BYTES = 32 * 1024 * 1024  # float64 values of one slice over all sites

Matrix = NDArray[np.float64]


def combined(plan: RoundPlan, payloads: Iterable[bytes], folder: Path) -> Gradient:
    """The round's gradient [D] by the plan's rule over its public divisor n·q·N̄.

    `folder` is for the temporary file of a robust rule; the mean needs none.
    """
    if plan.aggregation.rule == "mean":
        return aggregate(payloads, plan.adapter.size, plan.divisor)
    return robust_sum(plan.aggregation, payloads, plan.adapter.size, folder) / plan.divisor


def robust_sum(
    spec: AggregationSpec,
    payloads: Iterable[bytes],
    size: int,
    folder: Path,
    slice_bytes: int = SLICE_BYTES,
) -> Gradient:
    """m times the location of one update by `spec.rule`, float64 [D].

    Args:
        spec: a rule other than "mean"; its `byzantine` is f. The plan's quorum has made sure that
            m is enough for it.
        payloads: admitted updates, each `size` float32 numbers, one in memory at a time.
        size: D.
        folder: where the temporary file of m · 4D bytes goes.
        slice_bytes: memory of one slice.
    """
    with tempfile.TemporaryFile(dir=folder, prefix="updates-") as file:
        count = 0
        for payload in payloads:
            file.write(unpack(payload).tobytes())
            count += 1
        spool = _Spool(file, count, size, max(1, slice_bytes // (8 * count)))
        if spec.rule == "krum":
            return count * spool.row(_krum(spool, spec.byzantine))
        location_D = np.empty(size, dtype=np.float64)
        for start, values_MK in spool.slices():
            stop = start + values_MK.shape[1]
            location_D[start:stop] = _location(spec, values_MK)
        return count * location_D


class _Spool:
    """Updates on disk, in the order given."""

    def __init__(self, file: IO[bytes], count: int, size: int, width: int) -> None:
        self.count = count
        self._file = file
        self._size = size
        self._width = width

    def slices(self) -> Iterator[tuple[int, Matrix]]:
        """(first coordinate, values [M, K]) of each slice."""
        for start in range(0, self._size, self._width):
            stop = min(start + self._width, self._size)
            rows = [self._read(index, start, stop) for index in range(self.count)]
            yield start, np.stack(rows)

    def row(self, index: int) -> Gradient:
        """Update number `index`, [D]."""
        return self._read(index, 0, self._size)

    def _read(self, index: int, start: int, stop: int) -> Gradient:
        self._file.seek((index * self._size + start) * FLOAT32_BYTES)
        data = self._file.read((stop - start) * FLOAT32_BYTES)
        return np.frombuffer(data, dtype=np.float32).astype(np.float64)


def _location(spec: AggregationSpec, values_MK: Matrix) -> Gradient:
    if spec.rule == "median":
        median_K: Gradient = np.median(values_MK, axis=0)
        return median_K
    ordered_MK = np.sort(values_MK, axis=0)
    kept_K: Gradient = ordered_MK[spec.byzantine : len(ordered_MK) - spec.byzantine].mean(axis=0)
    return kept_K


def _krum(spool: _Spool, byzantine: int) -> int:
    """Index of the update that Krum chooses."""
    distance_MM = np.zeros((spool.count, spool.count))
    for _, values_MK in spool.slices():
        for index, row_K in enumerate(values_MK):
            distance_MM[index] += ((values_MK - row_K) ** 2).sum(axis=1)
    np.fill_diagonal(distance_MM, np.inf)
    nearest = spool.count - byzantine - 2
    scores_M = np.sort(distance_MM, axis=1)[:, :nearest].sum(axis=1)
    return int(np.argmin(scores_M))
