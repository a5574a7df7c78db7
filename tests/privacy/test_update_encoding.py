"""Small updates: unbiased, within their bounds, and unpacked within the plan's size."""

from __future__ import annotations

import dataclasses
import json
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.errors import PlanError
from privacy.plan import RoundPlan
from privacy.update_encoding import (
    BLOCK,
    UpdateEncodingError,
    decode,
    encode,
    most_bytes,
)
from tests.privacy.plans import make_plan

SMALL = ("bfloat16", "int8")
ALL = ("float32", *SMALL)
SIZES = st.sampled_from((1, 2, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3))


def update(seed: int, size: int, scale: float = 1.0) -> np.ndarray:
    return (scale * np.random.default_rng(seed).standard_normal(size)).astype(np.float32)


def there_and_back(numbers_D: np.ndarray, encoding: str, seed: int = 0) -> np.ndarray:
    sent = encode(numbers_D.tobytes(), encoding, np.random.default_rng(seed))
    assert len(sent) <= most_bytes(encoding, numbers_D.size)
    return decode(sent, encoding, numbers_D.size)


def test_float32_is_sent_as_it_is():
    numbers_D = update(1, 1000)
    sent = encode(numbers_D.tobytes(), "float32", np.random.default_rng())
    assert sent == numbers_D.tobytes()
    np.testing.assert_array_equal(decode(sent, "float32", 1000), numbers_D)


@given(seed=st.integers(0, 10_000), size=SIZES, exponent=st.integers(-30, 30))
def test_bfloat16_errs_by_less_than_one_unit_in_its_last_place(seed, size, exponent):
    numbers_D = update(seed, size, 2.0**exponent)
    back_D = there_and_back(numbers_D, "bfloat16", seed)
    assert np.all(np.abs(back_D - numbers_D) < np.abs(numbers_D) * 2.0**-7)
    assert not (back_D.view(np.uint32) & 0xFFFF).any()


@given(seed=st.integers(0, 10_000), size=SIZES, exponent=st.integers(-30, 30))
def test_int8_errs_by_less_than_one_step_of_its_block(seed, size, exponent):
    numbers_D = update(seed, size, 2.0**exponent)
    back_D = there_and_back(numbers_D, "int8", seed)
    for start in range(0, size, BLOCK):
        block_B = numbers_D[start : start + BLOCK].astype(np.float64)
        step = np.abs(block_B).max() / 127
        error_B = np.abs(back_D[start : start + BLOCK] - block_B)
        assert error_B.max() <= step * (1 + 1e-5)


@pytest.mark.parametrize("encoding", SMALL)
def test_rounding_is_unbiased(encoding):
    numbers_D = np.linspace(-1.0, 1.0, 101, dtype=np.float32)
    coins = np.random.default_rng(7)
    rounds = 4000
    drawn_RD = np.stack(
        [decode(encode(numbers_D.tobytes(), encoding, coins), encoding, 101) for _ in range(rounds)]
    )
    error_D = drawn_RD.astype(np.float64).mean(axis=0) - numbers_D
    deviation_D = np.maximum(drawn_RD.std(axis=0), 1e-5)  # float32 rounds the rest
    assert np.abs(error_D / deviation_D).max() * np.sqrt(rounds) < 5.0
    assert deviation_D.max() > 1e-4  # it does round


@pytest.mark.parametrize("encoding", SMALL)
def test_zeros_and_the_largest_numbers_stay_finite(encoding):
    largest = np.finfo(np.float32).max
    numbers_D = np.array([0.0, -0.0, largest, -largest, 1e-45], np.float32)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        back_D = there_and_back(numbers_D, encoding)
    assert np.isfinite(back_D).all()
    assert np.all(back_D[:2] == 0)
    np.testing.assert_allclose(back_D[2:4], numbers_D[2:4], rtol=0.01)
    assert not there_and_back(np.zeros(10, np.float32), encoding).any()


def test_noise_takes_half_and_less_than_a_quarter_of_its_bytes():
    noise_D = update(3, 100_000)
    sizes = {e: len(encode(noise_D.tobytes(), e, np.random.default_rng(0))) for e in ALL}
    assert sizes["bfloat16"] < 0.5 * sizes["float32"]
    assert sizes["int8"] < 0.25 * sizes["float32"]


def test_an_update_too_random_to_pack_is_within_its_bound():
    for size in (1, 5, 100_000):
        bits_D = np.random.default_rng(1).integers(0, 2**32, size, np.uint32)
        numbers_D = np.where(np.isfinite(bits_D.view(np.float32)), bits_D.view(np.float32), 0)
        for encoding in ALL:
            there_and_back(numbers_D.astype(np.float32), encoding)


@given(data=st.binary(max_size=200), packed=st.booleans(), encoding=st.sampled_from(ALL))
def test_any_bytes_are_an_update_or_an_error(data, packed, encoding):
    try:
        back_D = decode(zlib.compress(data) if packed else data, encoding, 40)
    except UpdateEncodingError:
        return
    assert back_D.shape == (40,)
    assert back_D.dtype == np.float32


@pytest.mark.parametrize("encoding", SMALL)
def test_what_encode_does_not_make_is_refused(encoding):
    sent = encode(update(5, 100).tobytes(), encoding, np.random.default_rng(0))
    plain = zlib.decompress(sent)
    for wrong in (
        b"",
        sent[:-1],
        sent + b"x",
        sent + sent,
        plain,
        zlib.compress(plain[:-1]),
        zlib.compress(plain + b"x"),
    ):
        with pytest.raises(UpdateEncodingError):
            decode(wrong, encoding, 100)


@pytest.mark.parametrize("encoding", SMALL)
def test_a_bomb_is_not_unpacked(encoding):
    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(32)) + packer.flush()
    assert len(bomb) < 40_000
    tracemalloc.start()
    with pytest.raises(UpdateEncodingError):
        decode(bomb, encoding, 1000)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_a_step_that_is_no_number_is_left_to_the_check_of_finiteness():
    plain = np.array([np.nan], "<f4").tobytes() + bytes([1] * 10)
    assert not np.isfinite(decode(zlib.compress(plain), "int8", 10)).any()
    plain = np.array([np.inf], "<f4").tobytes() + bytes([0] * 10)
    assert not np.isfinite(decode(zlib.compress(plain), "int8", 10)).any()


# The plan.


def test_the_plan_carries_it_and_older_plans_keep_their_name():
    plan = make_plan()
    assert b"update_encoding" not in plan.to_json()
    small = dataclasses.replace(plan, update_encoding="int8")
    assert json.loads(small.to_json())["update_encoding"] == "int8"
    assert RoundPlan.from_json(small.to_json()) == small
    assert small.sha256 != plan.sha256


def test_an_unknown_encoding_and_a_masked_one_are_refused():
    plan = make_plan()
    with pytest.raises(PlanError, match="update_encoding"):
        dataclasses.replace(plan, update_encoding="int4")
    secure = {
        "sites": ("a", "b"),
        "quorum": 2,
        "honest_sites": 2,
        "privacy_mode": "secure-aggregation",
        "site_keys": ("0" * 64, "1" * 64),
    }
    assert dataclasses.replace(plan, **secure).privacy_mode == "secure-aggregation"
    with pytest.raises(PlanError, match="update_encoding"):
        dataclasses.replace(plan, **secure, update_encoding="bfloat16")
