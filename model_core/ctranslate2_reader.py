"""Reads the variables of a CTranslate2 model.bin, version 6, without CTranslate2.

Layout, little endian (CTranslate2's `model_spec.py`, `_serialize`): u32 version; string
specification; u32 revision; u32 variables; per variable: string name, u8 rank, u32 dimensions,
u8 dtype, u32 bytes, data; u32 aliases; per alias: string alias, string name. A string is a u16
length that counts its terminating zero byte.

Every length is checked against the file before it is used: a damaged or hostile file is refused,
never read out of bounds, and never makes us allocate more than its own size.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from model_core.errors import WeightsError

_MAX_RANK = 8
_DTYPES: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
    5: np.dtype("<u2"),  # bfloat16, reinterpreted below
}
_BFLOAT16 = 5


@dataclass(frozen=True)
class CTranslate2Model:
    """Specification name and every variable; aliases are entries that share their tensor."""

    specification: str
    revision: int
    variables: dict[str, Tensor]


class _Cursor:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._offset = 0

    def take(self, size_bytes: int) -> memoryview:
        end = self._offset + size_bytes
        if end > len(self._data):
            raise _malformed(f"it ends inside a field at byte {self._offset}")
        piece = self._data[self._offset : end]
        self._offset = end
        return piece

    def integer(self, layout: str) -> int:
        return cast(int, struct.unpack(layout, self.take(struct.calcsize(layout)))[0])

    def string(self) -> str:
        raw = bytes(self.take(self.integer("<H")))
        if not raw.endswith(b"\0"):
            raise _malformed("a string has no end")
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError as error:
            raise _malformed("a name is not text") from error

    @property
    def at_end(self) -> bool:
        return self._offset == len(self._data)


def read_ctranslate2(*parts: Path) -> CTranslate2Model:
    """Read a model.bin, or the parts that it was cut into, in their order.

    Raises WeightsError (weights-malformed) naming the fault.
    """
    cursor = _Cursor(memoryview(b"".join(part.read_bytes() for part in parts)))
    version = cursor.integer("<I")
    if version != 6:
        raise _malformed(f"its format version is {version}; version 6 is supported")
    specification, revision = cursor.string(), cursor.integer("<I")
    variables: dict[str, Tensor] = {}
    for _ in range(cursor.integer("<I")):
        name = cursor.string()
        variables[name] = _tensor(cursor, name)
    for _ in range(cursor.integer("<I")):
        alias, name = cursor.string(), cursor.string()
        if name not in variables:
            raise _malformed(f"the alias {alias} names nothing")
        variables[alias] = variables[name]
    if not cursor.at_end:
        raise _malformed("bytes follow its last field")
    return CTranslate2Model(specification, revision, variables)


def _tensor(cursor: _Cursor, name: str) -> Tensor:
    rank = cursor.integer("<B")
    if rank > _MAX_RANK:
        raise _malformed(f"{name} has {rank} dimensions")
    shape = tuple(cursor.integer("<I") for _ in range(rank))
    code, size_bytes = cursor.integer("<B"), cursor.integer("<I")
    dtype = _DTYPES.get(code)
    if dtype is None:
        raise _malformed(f"{name} has the unknown dtype {code}")
    if math.prod(shape) * dtype.itemsize != size_bytes:
        raise _malformed(f"{name} has shape {shape} but {size_bytes} bytes")
    values = np.frombuffer(cursor.take(size_bytes), dtype).reshape(shape)
    tensor = torch.from_numpy(values.copy())
    return tensor.view(torch.bfloat16) if code == _BFLOAT16 else tensor


def _malformed(what: str) -> WeightsError:
    return WeightsError(
        f"the CTranslate2 file cannot be read: {what}",
        remedy="download the model again; a CTranslate2 folder holds model.bin of Whisper",
    )
