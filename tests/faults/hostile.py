"""Updates that no honest site sends, each with the code under which it must be refused."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from coordinator.admission import STATEMENT_LIMIT_BYTES, norm_bound
from privacy.parcel import Parcel, RoundOrder
from privacy.signing import Identity
from tests.coordinator.fakes import FakeSite

Make = Callable[[FakeSite, RoundOrder], Parcel]
BOMB = Path("/tmp/auricle-pickle-ran")
# What `pickle` would run while it reads: os.system("touch BOMB"), in its text protocol.
PICKLE = f"cos\nsystem\n(S'touch {BOMB}'\ntR.".encode()


@dataclasses.dataclass(frozen=True)
class Hostile:
    """How to make the update, and its refusal's code."""

    make: Make
    code: str


def good_numbers(site: FakeSite, order: RoundOrder) -> np.ndarray:
    """What an honest site might send: noise of the plan's size, [D] float32."""
    plan = site.plans[order.job]
    scale = plan.noise_multiplier * plan.clipping_norm
    seed = [order.round, *site.name.encode()]
    return np.random.default_rng(seed).normal(0, scale, plan.adapter.size).astype("<f4")


def _payload(change: Callable[[np.ndarray, FakeSite, RoundOrder], np.ndarray]) -> Make:
    """An update, rightly signed, of changed numbers."""

    def make(site: FakeSite, order: RoundOrder) -> Parcel:
        numbers_D = change(good_numbers(site, order), site, order)
        return site.sealed(order.job, order.round, numbers_D.astype("<f4").tobytes())

    return make


def _one(value: float) -> Make:
    def change(numbers_D: np.ndarray, _site: FakeSite, _order: RoundOrder) -> np.ndarray:
        numbers_D[1] = value
        return numbers_D

    return _payload(change)


def _huge(numbers_D: np.ndarray, site: FakeSite, order: RoundOrder) -> np.ndarray:
    bound = norm_bound(site.plans[order.job])
    return numbers_D * (1.01 * bound / np.linalg.norm(numbers_D))


def _first_tensor(site: FakeSite, order: RoundOrder) -> int:
    return site.plans[order.job].adapter.tensors[0].size


def _bytes(payload: bytes) -> Make:
    return lambda site, order: site.sealed(order.job, order.round, payload)


def _of_right_size(payload: bytes) -> Make:
    """`payload`, cut or repeated to be as long as an update."""

    def make(site: FakeSite, order: RoundOrder) -> Parcel:
        size_bytes = 4 * site.plans[order.job].adapter.size
        repeated = payload * (size_bytes // len(payload) + 1)
        return site.sealed(order.job, order.round, repeated[:size_bytes])

    return make


def _header(**changes: object) -> Make:
    """Good numbers under a header that says something else."""

    def make(site: FakeSite, order: RoundOrder) -> Parcel:
        payload = good_numbers(site, order).tobytes()
        return site.sealed(order.job, order.round, payload, **changes)

    return make


def _envelope(change: Callable[[bytes], bytes]) -> Make:
    def make(site: FakeSite, order: RoundOrder) -> Parcel:
        parcel = _header()(site, order)
        return dataclasses.replace(parcel, statement=change(parcel.statement))

    return make


def _flip(index: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        flipped = bytearray(data)
        flipped[index] ^= 1
        return bytes(flipped)

    return change


def _flipped_payload(site: FakeSite, order: RoundOrder) -> Parcel:
    parcel = _header()(site, order)
    return dataclasses.replace(parcel, payload=_flip(-1)(parcel.payload))


def _signed_by_another(site: FakeSite, order: RoundOrder) -> Parcel:
    own, site.identity = site.identity, Identity.generate()
    try:
        return _header()(site, order)
    finally:
        site.identity = own


def zip_bytes() -> bytes:
    """A zip archive, as torch.save makes them."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", PICKLE)
    return archive.getvalue()


def lying_safetensors() -> bytes:
    """A safetensors file whose header claims to be of an exbibyte, of a tensor as large."""
    tensor = {"w": {"dtype": "F32", "shape": [1 << 58], "data_offsets": [0, 1 << 60]}}
    return (1 << 60).to_bytes(8, "little") + json.dumps(tensor).encode()


HOSTILE: dict[str, Hostile] = {
    "NaN": Hostile(_one(float("nan")), "update-not-finite"),
    "Inf": Hostile(_one(float("inf")), "update-not-finite"),
    "minus Inf": Hostile(_one(float("-inf")), "update-not-finite"),
    "huge norm": Hostile(_payload(_huge), "norm-exceeded"),
    "largest float": Hostile(_one(3.4e38), "norm-exceeded"),
    "all-zero delta": Hostile(_payload(lambda v, _s, _o: 0 * v), "noise-missing"),
    "half the rank": Hostile(_payload(lambda v, _s, _o: v[: v.size // 2]), "shape-mismatch"),
    "twice the rank": Hostile(_payload(lambda v, _s, _o: np.tile(v, 2)), "update-oversized"),
    "missing tensor": Hostile(_payload(lambda v, s, o: v[_first_tensor(s, o) :]), "shape-mismatch"),
    "extra tensor": Hostile(
        _payload(lambda v, s, o: np.append(v, v[: _first_tensor(s, o)])), "update-oversized"
    ),
    "float64 numbers": Hostile(
        lambda s, o: s.sealed(o.job, o.round, good_numbers(s, o).astype("<f8").tobytes()),
        "update-oversized",
    ),
    "no payload": Hostile(_bytes(b""), "shape-mismatch"),
    "a byte short": Hostile(
        lambda s, o: s.sealed(o.job, o.round, good_numbers(s, o).tobytes()[:-1]), "shape-mismatch"
    ),
    "pickle": Hostile(_bytes(PICKLE * 40), "update-oversized"),
    "pickle of the right size": Hostile(_of_right_size(PICKLE), "norm-exceeded"),
    "zip": Hostile(_bytes(zip_bytes()), "update-oversized"),
    "safetensors with a lying header": Hostile(
        _of_right_size(lying_safetensors()), "norm-exceeded"
    ),
    "truncated envelope": Hostile(_envelope(lambda data: data[:-9]), "signature-invalid"),
    "empty envelope": Hostile(_envelope(lambda _: b""), "signature-invalid"),
    "bit-flipped envelope": Hostile(_envelope(_flip(40)), "signature-invalid"),
    "bit-flipped signature": Hostile(_envelope(_flip(-20)), "signature-invalid"),
    "bit-flipped payload": Hostile(_flipped_payload, "payload-mismatch"),
    "oversized envelope": Hostile(
        _envelope(lambda data: data + b" " * STATEMENT_LIMIT_BYTES), "update-oversized"
    ),
    "oversized payload": Hostile(_bytes(bytes(1 << 24)), "update-oversized"),
    "envelope of JSON nested without end": Hostile(
        _envelope(lambda _: b"[" * 60_000), "signature-invalid"
    ),
    "another's key": Hostile(_signed_by_another, "signature-invalid"),
    "another site's name": Hostile(_header(site="north"), "site-mismatch"),
    "lying size": Hostile(_header(size_bytes=1), "size-mismatch"),
    "lying hash": Hostile(_header(payload_sha256="0" * 64), "payload-mismatch"),
    "name with ../": Hostile(_header(site="../north"), "site-mismatch"),
    "name with NUL": Hostile(_header(site="north\0"), "site-mismatch"),
    "name in another script": Hostile(_header(site="nоrth"), "site-mismatch"),
    "another job": Hostile(_header(job="ff" * 8), "job-mismatch"),
    "another plan": Hostile(_header(plan_sha256="0" * 64), "plan-mismatch"),
    "another round": Hostile(_header(round=99), "round-mismatch"),
    "an impossible tree head": Hostile(_header(tree_head="no hash"), "peer-head-invalid"),
}
