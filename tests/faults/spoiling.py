"""Hypothesis strategies that spoil valid bytes and valid JSON, as an attacker or a disk would."""

from __future__ import annotations

import copy
import json
from typing import Any

from hypothesis import strategies as st

INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b'"', b"{", b"[", b"\\", b"\n", b"=", b"../")
ODD_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.sampled_from([0, -1, 1e308, -1e308, 5e-324, 10**400, 2**53, 2**63, 0.1]),
    st.text(max_size=20),
    st.sampled_from(["", "../../x", "a\0b", "\ud800", "Infinity", "NaN", "0" * 64, "é" * 1000]),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
    st.builds(lambda: [[[[[[[[]]]]]]]]),
)


@st.composite
def spoiled(draw: st.DrawFn, sample: bytes) -> bytes:
    """`sample` with one to eight spots flipped, cut out, put in, doubled or cut off."""
    data = bytearray(sample)
    for _ in range(draw(st.integers(1, 8))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["flip", "cut", "insert", "double", "end", "number"])):
            case "flip" if at < len(data):
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "cut":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.sampled_from(INTERESTING)) * max(1, length)
            case "double":
                data[at:at] = data[at : at + length]
            case "end":
                del data[at:]
            case "number":
                data[at : at + 8] = draw(st.integers(0, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def anything(sample: bytes) -> st.SearchStrategy[bytes]:
    """The sample spoiled, or bytes that have nothing to do with it."""
    return st.one_of(spoiled(sample), st.binary(max_size=200))


@st.composite
def spoiled_json(draw: st.DrawFn, sample: Any) -> Any:
    """JSON like `sample`, with one to three of its values, keys or items changed."""
    value = copy.deepcopy(sample)
    for _ in range(draw(st.integers(1, 3))):
        place = value
        while isinstance(place, dict | list) and place:
            keys = sorted(place) if isinstance(place, dict) else range(len(place))
            key = draw(st.sampled_from(list(keys)))
            inner = place[key]
            if isinstance(inner, dict | list) and inner and draw(st.booleans()):
                place = inner
                continue
            if draw(st.integers(0, 3)):
                place[key] = draw(ODD_LEAVES)
            else:
                del place[key]
            break
        if isinstance(value, dict) and not draw(st.integers(0, 5)):
            value[draw(st.text(max_size=8))] = draw(ODD_LEAVES)
    return value


def json_bytes(sample: Any) -> st.SearchStrategy[bytes]:
    """The JSON text of `spoiled_json`."""
    return spoiled_json(sample).map(lambda value: json.dumps(value).encode())
