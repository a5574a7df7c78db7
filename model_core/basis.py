"""Frozen outer factors for adapters of kind "core".

A basis is an explicit dictionary: `<layer>.down` [r, in] and `<layer>.up` [out, r] (with a leading
expert axis for stacks). It is made once by the coordinator from public material only (here the
weights themselves), saved as safetensors, named by SHA-256 in the plan, and sent to every site.
"""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from model_core.adapter_targets import AdapterConfig, find_targets
from model_core.errors import AdapterError


@torch.no_grad()
def make_basis(model: nn.Module, config: AdapterConfig) -> dict[str, Tensor]:
    """LoRA-XS: the r largest singular directions, A = S_r V_rᵀ and U = U_r of each weight.

    Experts that are still equal copies share one decomposition.
    """
    basis: dict[str, Tensor] = {}
    for target in find_targets(model, config):
        weight = target.weight.float()
        copies = weight.dim() == 3 and bool((weight == weight[:1]).all())
        left, singular, right = torch.linalg.svd(
            weight[:1] if copies else weight, full_matrices=False
        )
        rank = config.rank
        if rank > singular.shape[-1]:
            raise AdapterError(
                f"rank {rank} is above {singular.shape[-1]}, the rank of {target.name}",
                remedy="choose a smaller rank",
                code="adapter-basis",
            )
        down = singular[..., :rank, None] * right[..., :rank, :]
        up = left[..., :, :rank]
        if copies:
            down = down.expand(len(weight), -1, -1)
            up = up.expand(len(weight), -1, -1)
        basis[f"{target.name}.down"] = down.contiguous()
        basis[f"{target.name}.up"] = up.contiguous()
    return basis


def basis_to_bytes(basis: dict[str, Tensor]) -> bytes:
    """Safetensors bytes; equal bases give equal bytes."""
    return bytes(save({name: basis[name].contiguous() for name in sorted(basis)}))


def basis_from_bytes(data: bytes) -> dict[str, Tensor]:
    """Parse safetensors bytes. Raises AdapterError (adapter-basis)."""
    try:
        basis: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise AdapterError(
            f"the basis cannot be read: {type(error).__name__}",
            remedy="ask the coordinator to issue it again",
            code="adapter-basis",
        ) from error
    if not all(bool(torch.isfinite(factor).all()) for factor in basis.values()):
        raise AdapterError(
            "the basis holds numbers that are not finite",
            remedy="ask the coordinator to issue it again",
            code="adapter-basis",
        )
    return basis


def basis_sha256(data: bytes) -> str:
    """Hex SHA-256 of a basis's bytes: its name in the plan."""
    return hashlib.sha256(data).hexdigest()
