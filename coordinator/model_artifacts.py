"""The coordinator's only door to the speech model: adapter spec, basis, release bytes.

Rounds handle flat vectors; what they mean is known here alone. Importing the model's libraries
takes seconds, so they are imported when the first job asks for them.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

from coordinator.aggregate import Vector
from coordinator.request import AdapterRequest
from privacy.plan import AdapterSpec


@dataclasses.dataclass(frozen=True)
class JobArtifacts:
    """What a new job needs of the model.

    Attributes:
        base_sha256: hash of the frozen base.
        adapter: exact trainable tensors in packing order.
        basis: frozen factors as safetensors, empty where both factors train.
        initial: the trainable numbers before the first round, float32 [D].
    """

    base_sha256: str
    adapter: AdapterSpec
    basis: bytes
    initial: Vector


class ArtifactSource(Protocol):
    """Makes artifacts from a base model folder. Both methods may take seconds."""

    def prepare(self, base_folder: Path, request: AdapterRequest) -> JobArtifacts:
        """Artifacts of a new job. Raises the model room's errors on a wrong base."""
        ...

    def export(
        self, base_folder: Path, spec: AdapterSpec, basis: bytes, weights_D: Vector
    ) -> bytes:
        """The adapter with these trained numbers as safetensors that stock peft loads.

        The same arguments give the same bytes.
        """
        ...
