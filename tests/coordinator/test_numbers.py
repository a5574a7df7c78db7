"""Aggregation and the server's optimisers against plain numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.aggregate import aggregate, pack, unpack
from coordinator.optimiser import OptimiserState, apply
from privacy.plan import OptimiserSpec

SIZE = 5
vectors = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=SIZE, max_size=SIZE), max_size=6
)


@given(vectors, st.floats(0.5, 1e4))
def test_aggregate_is_the_sum_over_the_public_divisor(updates, divisor):
    payloads = [pack(np.array(update, np.float32)) for update in updates]
    expected = np.array(updates, np.float64).reshape(-1, SIZE).sum(axis=0) / divisor
    np.testing.assert_allclose(aggregate(iter(payloads), SIZE, divisor), expected, rtol=1e-12)


def test_divisor_does_not_shrink_with_missing_sites():
    one = pack(np.ones(SIZE, np.float32))
    np.testing.assert_array_equal(aggregate([one], SIZE, 90.0), np.full(SIZE, 1 / 90))


def test_payloads_are_little_endian_float32():
    assert pack(np.array([1.0], np.float32)) == b"\x00\x00\x80\x3f"
    assert unpack(b"\x00\x00\x80\x3f").tolist() == [1.0]


def steps(spec, gradients):
    weights = np.linspace(-1, 1, SIZE).astype(np.float32)
    state = OptimiserState.initial(SIZE)
    for gradient in gradients:
        weights, state = apply(spec, weights, gradient, state, 20)
    return weights, state


@pytest.fixture
def gradients():
    return np.random.default_rng(3).normal(size=(20, SIZE))


def test_sgd(gradients):
    weights, state = steps(OptimiserSpec("sgd", 0.1, schedule="constant"), gradients)
    expected = np.linspace(-1, 1, SIZE) - 0.1 * gradients.sum(axis=0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
    assert state.step == 20


def test_adam_follows_the_paper(gradients):
    spec = OptimiserSpec("adam", 0.01, 0.9, 0.99, 1e-8, "constant")
    weights = np.linspace(-1, 1, SIZE).astype(np.float32).astype(np.float64)
    m = v = np.zeros(SIZE)
    for t, g in enumerate(gradients, start=1):
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        weights = weights - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.99**t)) + 1e-8)
    np.testing.assert_allclose(steps(spec, gradients)[0], weights, atol=1e-5)


def test_adam_agrees_with_torch(gradients):
    import torch

    torch.set_num_threads(1)
    weights = torch.linspace(-1, 1, SIZE, requires_grad=True)
    adam = torch.optim.Adam([weights], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    for gradient in gradients:
        weights.grad = torch.tensor(gradient, dtype=torch.float32)
        adam.step()
    ours, _ = steps(OptimiserSpec("adam", 0.01, 0.9, 0.99, 1e-8, "constant"), gradients)
    np.testing.assert_allclose(ours, weights.detach().numpy(), atol=1e-5)


def test_lamb_moves_each_layer_by_its_own_norm(gradients):
    """You et al. 2020, algorithm 2 without decay; a layer of zeros moves as under Adam."""
    spec = OptimiserSpec("lamb", 0.01, 0.9, 0.99, 1e-6, "constant")
    weights = np.array([3.0, -4.0, 0.0, 0.0, 2.0], np.float32)
    state = OptimiserState.initial(SIZE)
    moved, after = apply(spec, weights, gradients[0], state, 20, layer_sizes=[2, 2, 1])
    ratio = gradients[0] / (np.abs(gradients[0]) + 1e-6)  # bias corrected at its first step
    trust = [5 / np.linalg.norm(ratio[:2])] * 2 + [1.0] * 2 + [2 / np.abs(ratio[4])]
    np.testing.assert_allclose(moved, weights - 0.01 * np.array(trust) * ratio, atol=1e-6)
    adam = OptimiserSpec("adam", 0.01, 0.9, 0.99, 1e-6, "constant")
    np.testing.assert_array_equal(
        after.second, apply(adam, weights, gradients[0], state, 20)[1].second
    )
    whole, _ = apply(spec, weights, gradients[0], state, 20)
    assert not np.array_equal(whole, moved)


@pytest.mark.parametrize("name", ["adam", "sgd", "lamb"])
def test_a_restored_state_continues_bit_for_bit(gradients, name):
    spec = OptimiserSpec(name, 0.01)
    weights, state = steps(spec, gradients[:7])
    for gradient in gradients[7:]:
        weights, state = unpack(pack(weights)), OptimiserState.from_bytes(state.to_bytes())
        weights, state = apply(spec, weights, gradient, state, 20)
    expected, _ = steps(spec, gradients)
    assert weights.tobytes() == expected.tobytes()


def test_a_linear_schedule_shrinks_every_step_and_never_reaches_zero(gradients):
    weights, _ = steps(OptimiserSpec("sgd", 0.1, schedule="linear"), gradients)
    decay = 1 - np.arange(20) / 20
    expected = np.linspace(-1, 1, SIZE) - 0.1 * (decay[:, None] * gradients).sum(axis=0)
    np.testing.assert_allclose(weights, expected, atol=1e-5)
