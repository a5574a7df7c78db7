"""Adapters as bytes: exactly the tensors of a stock peft LoRA, and no others.

The safetensors metadata carries the configuration, so the bytes alone are a whole adapter; a
folder has beside them the `adapter_config.json` that stock peft asks for. peft selects keys by
structure, so the exact key set is checked when writing and when reading.
"""

from __future__ import annotations

import dataclasses
import json
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from model_core.adapter_targets import AdapterConfig
from model_core.errors import AdapterError

ADAPTER_FILE = "adapter_model.safetensors"
_METADATA = "auricle_adapter"


def pack_adapter(state: Mapping[str, Tensor], config: AdapterConfig) -> bytes:
    """Safetensors bytes of a peft state dict; equal adapters give equal bytes."""
    fields = dataclasses.asdict(dataclasses.replace(config, kind="lora", seed=0))
    tensors = {name: state[name].detach().contiguous() for name in sorted(state)}
    return bytes(save(tensors, metadata={_METADATA: json.dumps(fields, sort_keys=True)}))


def read_adapter(source: bytes | Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    """Configuration and state dict from bytes or a folder. Raises AdapterError."""
    if isinstance(source, Path):
        return _read(source / ADAPTER_FILE)
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        path = Path(folder) / ADAPTER_FILE
        path.write_bytes(source)
        return _read(path)


def check_state(
    state: Mapping[str, Tensor],
    keys: set[str],
    shapes: Mapping[str, torch.Size] | None = None,
) -> None:
    """Raise AdapterError unless the keys are exactly these and values are finite float32.

    `shapes`, if given, are the shapes that they must have (`adapter-shape`).
    """
    if set(state) != keys:
        odd = sorted(set(state) ^ keys)
        raise _malformed(f"its tensors are not those of its targets: {odd[:3]}")
    for name, tensor in state.items():
        if tensor.dtype != torch.float32 or not bool(torch.isfinite(tensor).all()):
            raise _malformed(f"{name} is not finite float32", "adapter-shape")
        if shapes is not None and tensor.shape != shapes[name]:
            raise _malformed(f"{name} has shape {tuple(tensor.shape)}", "adapter-shape")


def _read(path: Path) -> tuple[AdapterConfig, dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads((file.metadata() or {})[_METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        for name in ("target_modules", "target_parameters"):
            fields[name] = tuple(str(pattern) for pattern in fields[name])
        config = AdapterConfig(**fields)
        _require_backed(config, state)
        return config, state
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _malformed(f"it cannot be read: {type(error).__name__}") from error


def _require_backed(config: AdapterConfig, state: Mapping[str, Tensor]) -> None:
    """Raise ValueError for a rank that no tensor has: it is reserved before shapes are compared."""
    numbers = (config.rank, config.seed)
    fits = all(type(number) is int for number in numbers) and math.isfinite(config.scaling)
    rows = [tensor.shape[0] for name, tensor in state.items() if name.endswith("lora_A.weight")]
    if not (fits and 1 <= config.rank <= min(rows, default=0)):
        raise ValueError


def _malformed(what: str, code: str = "adapter-malformed") -> AdapterError:
    return AdapterError(
        f"the adapter cannot be used: {what}",
        remedy="fetch the release again; it must have been made for this base",
        code=code,
    )
