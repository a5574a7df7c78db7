"""The coordinator's only door to the speech model: adapter spec, basis, release bytes.

Rounds handle flat vectors; what they mean is known here alone. Importing the model's libraries
takes seconds, so they are imported when the first job asks for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from coordinator.aggregate import Vector
from coordinator.errors import CoordinatorError
from coordinator.request import AdapterRequest
from privacy.plan import AdapterSpec, TensorSpec

if TYPE_CHECKING:
    from model_core.adapter import AdapterConfig


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


class SpeechArtifacts:
    """Artifacts of the real speech model. Raises CoordinatorError with the model room's codes."""

    def prepare(self, base_folder: Path, request: AdapterRequest) -> JobArtifacts:
        """Load the base, attach a fresh adapter, and read off what a plan needs."""
        from model_core.adapter import attach, basis_from_bytes, basis_to_bytes, make_basis
        from model_core.base import load_base

        with _as_coordinator_error():
            base = load_base(base_folder)
            config = _config(request)
            basis = None
            if request.kind == "core" and request.basis is not None:
                basis = basis_from_bytes(_read_basis(request.basis))
            elif request.kind == "core":
                basis = make_basis(base.model, config)
            adapter = attach(base.model, config, basis)
        basis_bytes = b"" if basis is None else basis_to_bytes(basis)
        spec = AdapterSpec(
            kind=request.kind,
            rank=request.rank,
            scaling=request.scaling,
            target_modules=request.target_modules,
            target_parameters=request.target_parameters,
            tensors=tuple(TensorSpec(name, shape) for name, shape in adapter.tensor_specs()),
            basis_sha256=hashlib.sha256(basis_bytes).hexdigest() if basis_bytes else None,
        )
        return JobArtifacts(base.base_sha256, spec, basis_bytes, adapter.vector().numpy())

    def export(
        self, base_folder: Path, spec: AdapterSpec, basis: bytes, weights_D: Vector
    ) -> bytes:
        """Attach the adapter once more, load the trained numbers, and serialise."""
        import torch

        from model_core.adapter import attach, basis_from_bytes
        from model_core.base import load_base

        with _as_coordinator_error():
            frozen = basis_from_bytes(basis) if basis else None
            adapter = attach(load_base(base_folder).model, _config(spec), frozen)
            adapter.load_vector(torch.from_numpy(weights_D.copy()))
            return adapter.to_safetensors()


def _read_basis(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CoordinatorError(
            f"the basis {path} cannot be read: {error.strerror}",
            remedy="make it with `auricle coordinator basis`, or leave it out of the request",
            code="basis-missing",
        ) from error


def _config(of: AdapterRequest | AdapterSpec) -> AdapterConfig:
    from model_core.adapter import AdapterConfig

    return AdapterConfig(
        kind=of.kind,
        rank=of.rank,
        scaling=of.scaling,
        target_modules=of.target_modules,
        target_parameters=of.target_parameters,
    )


@contextmanager
def _as_coordinator_error() -> Iterator[None]:
    from model_core.errors import ModelCoreError

    try:
        yield
    except ModelCoreError as error:
        raise CoordinatorError(error.problem, remedy=error.remedy, code=error.code) from error
