"""A random source that remembers what it gave, for as long as one round lasts."""

from __future__ import annotations

import torch

from privacy.probes.sampler import Sample
from privacy.random_source import RandomSource


class ObservedSource:
    """Hands on the draws of a source unchanged and keeps them for the probes of this round."""

    def __init__(self, source: RandomSource) -> None:
        self.source = source
        self.normals: list[torch.Tensor] = []
        self.samples: list[Sample] = []

    @property
    def name(self) -> str:
        """Name of the source behind."""
        return self.source.name

    def normal(self, size: int) -> torch.Tensor:
        """Standard Gaussian values, float64, shape [size]."""
        values = self.source.normal(size)
        self.normals.append(values.clone())
        return values

    def poisson_sample(self, n: int, rate: float) -> list[int]:
        """Indices below `n`, ascending, each present independently with probability `rate`."""
        chosen = self.source.poisson_sample(n, rate)
        self.samples.append(Sample(n, rate, tuple(chosen)))
        return chosen
