"""Small updates: how the numbers of a noised update are written for the way.

The plan chooses one of three. Each is a function of the noised update and of coins that are tossed
apart from the data, so it is post-processing: ε is that of the update before it.

    float32    4 bytes a number, little-endian, as they are
    bfloat16   the upper half of each float32
    int8       -127 to 127 steps, a step for each block of `BLOCK` numbers: its largest / 127

The last two round stochastically, up with the probability of the part that is lost, so that the
update stays unbiased and errors of sites and rounds average out (Gupta et al. 2015,
arXiv:1502.02551; Alistarh et al. 2017, arXiv:1610.02132). Error feedback was left out: it would
carry a site's update into later rounds, past a crash and into every backup. What is rounded is
packed without loss by DEFLATE (zlib), bytes of equal place together, and unpacked within the size
that the plan fixes.

Shape legend: D = trained numbers, K = blocks, B = numbers of a block.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray

from privacy.errors import AuricleError
from privacy.plan import UpdateEncoding

Numbers = NDArray[np.float32]
BLOCK = 4096
_LEVELS = 127
_FLOAT32_BYTES = 4
_ZLIB_LEVEL = 6


class UpdateEncodingError(AuricleError):
    """Bytes are not an update in the plan's encoding."""

    code = "update-encoding"
    exit_code = 14


def encode(payload: bytes, encoding: UpdateEncoding, random: np.random.Generator) -> bytes:
    """An update of [D] little-endian float32 numbers, all finite, as `encoding` writes it.

    `random` tosses the coins of rounding; it need not be secret.
    """
    if encoding == "float32":
        return payload
    numbers_D = np.frombuffer(payload, "<f4").astype(np.float32, copy=False)
    rounded = _to_bfloat16 if encoding == "bfloat16" else _to_int8
    return zlib.compress(rounded(numbers_D, random), _ZLIB_LEVEL)


def decode(payload: bytes, encoding: UpdateEncoding, size: int) -> Numbers:
    """The update's `size` numbers, float32 [D].

    Raises UpdateEncodingError for bytes that `encode` does not make of so many numbers. No more is
    unpacked than such an update has.
    """
    plain = payload
    if encoding != "float32":
        plain = _unpacked(payload, _plain_bytes(encoding, size))
    elif len(payload) != _plain_bytes(encoding, size):
        raise _malformed()
    if encoding == "bfloat16":
        return _from_bfloat16(plain)
    if encoding == "int8":
        return _from_int8(plain, size)
    return np.frombuffer(plain, "<f4").astype(np.float32, copy=False)


def most_bytes(encoding: UpdateEncoding, size: int) -> int:
    """Most bytes that an update of `size` numbers takes."""
    plain = _plain_bytes(encoding, size)
    if encoding == "float32":
        return plain
    return plain + plain // 1000 + 64  # DEFLATE stores what it cannot pack


def _plain_bytes(encoding: UpdateEncoding, size: int) -> int:
    """Bytes before packing, exactly."""
    if encoding == "float32":
        return _FLOAT32_BYTES * size
    if encoding == "bfloat16":
        return 2 * size
    return size + _FLOAT32_BYTES * -(-size // BLOCK)


def _to_bfloat16(numbers_D: Numbers, random: np.random.Generator) -> bytes:
    bits_D = numbers_D.view(np.uint32)
    # Adding up to one unit of the lower half carries into the upper with the right probability.
    coins_D = random.integers(0, 1 << 16, bits_D.size, dtype=np.uint32)
    # The largest finite numbers would carry into infinity: they are cut.
    carries_D = (bits_D & 0x7FFF_FFFF) < 0x7F7F_0000
    upper_D = ((bits_D + np.where(carries_D, coins_D, 0)) >> 16).astype(np.uint16)
    planes = (upper_D >> 8, upper_D & 0xFF)
    return b"".join(plane_D.astype(np.uint8).tobytes() for plane_D in planes)


def _from_bfloat16(plain: bytes) -> Numbers:
    high_D, low_D = np.frombuffer(plain, np.uint8).reshape(2, -1).astype(np.uint32)
    numbers_D: Numbers = ((high_D << 24) | (low_D << 16)).view(np.float32)
    return numbers_D


def _to_int8(numbers_D: Numbers, random: np.random.Generator) -> bytes:
    blocks = -(-numbers_D.size // BLOCK)
    padded_KB = np.zeros((blocks, BLOCK), np.float32)
    padded_KB.ravel()[: numbers_D.size] = numbers_D
    # Rounded down, so that 127 steps of the largest float32 are no infinity.
    steps_K = np.nextafter(np.abs(padded_KB).max(axis=1) / _LEVELS, 0, dtype=np.float32)
    units_KB = np.divide(
        padded_KB, steps_K[:, None], out=np.zeros_like(padded_KB), where=steps_K[:, None] > 0
    )
    coins_KB = random.random(padded_KB.shape, np.float32)
    levels_KB = np.floor(units_KB + coins_KB).clip(-_LEVELS, _LEVELS).astype(np.int8)
    levels_D = levels_KB.ravel()[: numbers_D.size]
    return b"".join((steps_K.astype("<f4").tobytes(), levels_D.tobytes()))


def _from_int8(plain: bytes, size: int) -> Numbers:
    blocks = -(-size // BLOCK)
    steps_K = np.frombuffer(plain, "<f4", blocks).astype(np.float32)
    levels_D = np.frombuffer(plain, np.int8, offset=_FLOAT32_BYTES * blocks).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused by who reads
        numbers_D: Numbers = levels_D * np.repeat(steps_K, BLOCK)[:size]
    return numbers_D


def _unpacked(payload: bytes, expected_bytes: int) -> bytes:
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(payload, expected_bytes + 1)
    except zlib.error as error:
        raise _malformed() from error
    if len(plain) != expected_bytes or not stream.eof or stream.unused_data:
        raise _malformed()
    return plain


def _malformed() -> UpdateEncodingError:
    return UpdateEncodingError(
        "the update's bytes are not the plan's numbers in the plan's encoding",
        remedy="check that site and coordinator run the same version of Auricle",
    )
