"""Rightly signed files that are not what they should be: never run, never given memory."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import resource
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from client_node.model_store import ModelStore
from model_core.base import SpeechBase, load_base, save_base
from model_core.errors import ModelCoreError
from privacy.plan import RoundPlan
from tests.client_node.harness import Coordinator, Site, make_plan
from tests.client_node.test_release import adapter_bytes
from tests.faults.hostile import BOMB, PICKLE, lying_safetensors, zip_bytes

pytestmark = pytest.mark.faults
MEMORY_BYTES = 64 << 20


def header(fields: object, body: bytes = b"") -> bytes:
    text = json.dumps(fields).encode()
    return struct.pack("<Q", len(text)) + text + body


def tensor(shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


FILES: dict[str, Callable[[], bytes]] = {
    "pickle": lambda: PICKLE,
    "zip": zip_bytes,
    "header of an exbibyte": lying_safetensors,
    "header longer than the file": lambda: struct.pack("<Q", 1 << 20) + b"{}",
    "header that is no JSON": lambda: struct.pack("<Q", 4) + b"\xff\xff\xff\xff",
    "header nested without end": lambda: struct.pack("<Q", 50_000) + b"[" * 50_000,
    "tensor of an exbibyte": lambda: header({"w": tensor([1 << 58], 0, 1 << 60)}),
    "tensor past the end": lambda: header({"w": tensor([4], 0, 16)}, bytes(8)),
    "tensors that overlap": lambda: header(
        {"a": tensor([2], 0, 8), "b": tensor([2], 4, 12)}, bytes(12)
    ),
    "shape that overflows": lambda: header({"w": tensor([1 << 33, 1 << 33], 0, 16)}, bytes(16)),
    "empty file": lambda: b"",
    "another model's tensors": lambda: save({"w": np.zeros(4, np.float32)}),
    "tensor named as a path": lambda: save({"../../w": np.zeros(4, np.float32)}),
}
filed = pytest.mark.parametrize("make", FILES.values(), ids=FILES)


def peak_bytes() -> int:
    """The most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def with_basis(plan: RoundPlan, basis: bytes) -> RoundPlan:
    digest = hashlib.sha256(basis).hexdigest()
    return dataclasses.replace(plan, adapter=dataclasses.replace(plan.adapter, basis_sha256=digest))


@pytest.mark.slow
@filed
def test_a_release_that_is_no_adapter_is_refused_in_bounded_memory_and_never_serves(
    site: Site, coordinator: Coordinator, nano: SpeechBase, make: Callable[[], bytes]
) -> None:
    plan, basis = make_plan(nano)
    agent = site.agent()
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    good = coordinator.release(plan, adapter_bytes(nano, plan, basis), release="good")
    assert agent.handle(good).kind == "activated"
    before = peak_bytes()
    reply = agent.handle(coordinator.release(plan, make(), release="bad"))
    assert (reply.kind, site.answer(reply).code) == ("refused", "adapter-malformed")
    assert peak_bytes() - before < MEMORY_BYTES
    models = ModelStore(site.home.releases, (coordinator.identity.public,), nano.base_sha256)
    assert models.active_id == "good"
    assert not BOMB.exists()


@pytest.mark.slow
@filed
def test_a_basis_that_is_none_is_refused_in_bounded_memory_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase, make: Callable[[], bytes]
) -> None:
    plan, _ = make_plan(nano)
    basis = make()
    before = peak_bytes()
    reply = site.agent().handle(coordinator.prepare(with_basis(plan, basis), basis))
    assert (reply.kind, site.answer(reply).code) == ("refused", "adapter-mismatch")
    assert peak_bytes() - before < MEMORY_BYTES
    assert not BOMB.exists()


@filed
def test_a_base_that_is_none_is_refused_in_bounded_memory(
    tmp_path: Path, nano: SpeechBase, make: Callable[[], bytes]
) -> None:
    save_base(nano, tmp_path / "base")
    (weights,) = (tmp_path / "base").glob("*.safetensors")
    weights.write_bytes(make())
    before = peak_bytes()
    with pytest.raises(ModelCoreError):
        load_base(tmp_path / "base")
    assert peak_bytes() - before < MEMORY_BYTES
    assert not BOMB.exists()
