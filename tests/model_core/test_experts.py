"""Experts: both kernels agree, routing is a token's own affair, padding stays padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.experts import MixtureFeedForward, grouped_linear, route


def mixture(top_k: int, dtype=torch.float32, experts: int = 4) -> MixtureFeedForward:
    torch.manual_seed(3)
    block = MixtureFeedForward(
        width=16,
        shared_hidden=8,
        expert_hidden=24,
        experts=experts,
        top_k=top_k,
        activation=torch.nn.GELU(),
    )
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return block.to(dtype).requires_grad_(False)


def reference(block: MixtureFeedForward, x_ND: torch.Tensor) -> torch.Tensor:
    """The definition, one token and one expert at a time."""
    rows = []
    for x_D in x_ND:
        p_E = block.router(x_D).float().softmax(-1)
        chosen = p_E.topk(block.top_k)
        weights = chosen.values / chosen.values.sum()
        y_D = block.shared_down(block.activation(block.shared_up(x_D)))
        for weight, expert in zip(weights, chosen.indices.tolist(), strict=True):
            e = block.experts
            hidden = block.activation(e.up_proj[expert] @ x_D + e.up_proj_bias[expert])
            y_D = y_D + weight.to(x_D.dtype) * (e.down_proj[expert] @ hidden)
        rows.append(y_D)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_block_equals_its_definition(top_k, dtype):
    block = mixture(top_k, dtype)
    x_BTD = torch.randn(3, 7, 16, dtype=dtype)
    expected = reference(block, x_BTD.view(-1, 16)).view_as(x_BTD)
    torch.testing.assert_close(block(x_BTD), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(sum))
def test_kernels_agree_with_gradients(counts):
    torch.manual_seed(sum(counts))
    offsets = torch.tensor(counts).cumsum(0).to(torch.int32)
    inputs = torch.randn(sum(counts), 8)
    weight = torch.randn(len(counts), 12, 8)
    results = []
    for kernel in ("grouped", "loop"):
        x = inputs.clone().requires_grad_()
        w = weight.clone().requires_grad_()
        y = grouped_linear(x, w, offsets, kernel)
        y.square().sum().backward()
        results.append((y.detach(), x.grad, w.grad))
    for grouped, looped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, looped, rtol=1e-4, atol=1e-4)


def test_odd_widths_fall_back_to_the_loop():
    y = grouped_linear(
        torch.ones(4, 3), torch.ones(2, 5, 3), torch.tensor([1, 4], dtype=torch.int32)
    )
    assert torch.equal(y, torch.full((4, 5), 3.0))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), top_k=st.integers(1, 3))
def test_route_sorts_every_choice_once(data, top_k):
    tokens = data.draw(st.integers(1, 20))
    expert_NK = torch.tensor(
        data.draw(
            st.lists(
                st.permutations(range(4)).map(lambda p: p[:top_k]),
                min_size=tokens,
                max_size=tokens,
            )
        )
    )
    routing = route(expert_NK, torch.rand(tokens, top_k), 4)
    assert (routing.expert_S.diff() >= 0).all()
    assert torch.bincount(routing.token_S, minlength=tokens).tolist() == [top_k] * tokens
    assert torch.equal(routing.expert_S[routing.slot_NK], expert_NK)
    assert torch.equal(
        routing.offsets_E.long(), torch.bincount(expert_NK.flatten(), minlength=4).cumsum(0)
    )


@pytest.mark.parametrize("top_k", [1, 2])
def test_routing_of_a_token_depends_on_its_utterance_only(top_k):
    block = mixture(top_k)
    batch_BTD = torch.randn(5, 9, 16)
    together = block(batch_BTD)
    for row in range(5):
        alone = block(batch_BTD[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-5, atol=1e-5)


def test_crowding_one_expert_drops_no_token():
    block = mixture(1)
    x_BTD = torch.randn(1, 1, 16).expand(2, 200, 16).contiguous()  # all tokens choose one expert
    y_BTD = block(x_BTD)
    torch.testing.assert_close(y_BTD, y_BTD[:1, :1].expand_as(y_BTD), rtol=1e-5, atol=1e-5)


def test_frozen_router_gives_the_true_derivative_of_the_output():
    block = mixture(1, torch.float64)
    x_BTD = torch.randn(1, 4, 16, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x_BTD,))


def test_trainable_router_receives_a_gradient_at_top_1():
    block = mixture(1)
    block.router.weight.requires_grad_(True)
    x_BTD = torch.randn(1, 6, 16)
    before = block(x_BTD)
    before.square().sum().backward()
    assert block.router.weight.grad.abs().max() > 0
    block.router.weight.requires_grad_(False)
    assert torch.equal(before.detach(), block(x_BTD))


def test_delta_is_added_to_the_sorted_projection():
    block = mixture(1)
    x_BTD = torch.randn(2, 5, 16)
    seen = []

    def delta(x_SI, routing):
        seen.append((x_SI, routing))
        return torch.zeros(len(x_SI), 24)

    before = block(x_BTD)
    block.experts.deltas["up_proj"] = delta
    assert torch.equal(block(x_BTD), before)
    x_SI, routing = seen[0]
    assert torch.equal(x_SI, x_BTD.view(-1, 16)[routing.token_S])
    block.experts.deltas["up_proj"] = lambda x_SI, _: torch.ones(len(x_SI), 24)
    assert not torch.allclose(block(x_BTD), before)
