"""The fused loss is stock cross-entropy: value and gradient, in any number of pieces."""

import pytest
import torch
from torch.nn import functional

from model_core.vocabulary_loss import FrozenVocabularyLoss


def batch(targets):
    generator = torch.Generator().manual_seed(3)
    hidden_ND = torch.randn(targets, 24, generator=generator, dtype=torch.float64) * 3
    weight_VD = torch.randn(90, 24, generator=generator, dtype=torch.float64)
    target_N = torch.randint(90, (targets,), generator=generator)
    upstream_N = torch.rand(targets, generator=generator, dtype=torch.float64)
    return hidden_ND.requires_grad_(), weight_VD, target_N, upstream_N


@pytest.mark.parametrize("targets", [0, 1, 64, 65, 200])
def test_equals_stock_cross_entropy(targets):
    hidden_ND, weight_VD, target_N, upstream_N = batch(targets)
    ours_N = FrozenVocabularyLoss.apply(hidden_ND, weight_VD, target_N)
    stock_N = functional.cross_entropy(hidden_ND @ weight_VD.t(), target_N, reduction="none")
    torch.testing.assert_close(ours_N, stock_N)
    (ours_ND,) = torch.autograd.grad(ours_N @ upstream_N, hidden_ND)
    (stock_ND,) = torch.autograd.grad(stock_N @ upstream_N, hidden_ND)
    torch.testing.assert_close(ours_ND, stock_ND)


def test_large_logits_stay_finite():
    hidden_ND, weight_VD, target_N, _ = batch(8)
    loss_N = FrozenVocabularyLoss.apply(hidden_ND * 1e4, weight_VD, target_N)
    assert bool(torch.isfinite(loss_N).all())


def test_under_autocast_close_and_in_the_hidden_states_precision():
    hidden_ND, weight_VD, target_N, _ = batch(70)
    hidden_ND, weight_VD = hidden_ND.detach().float().requires_grad_(), weight_VD.float()
    exact_N = FrozenVocabularyLoss.apply(hidden_ND, weight_VD, target_N)
    with torch.autocast("cpu", torch.bfloat16):
        loss_N = FrozenVocabularyLoss.apply(hidden_ND, weight_VD, target_N)
    (gradient_ND,) = torch.autograd.grad(loss_N.sum(), hidden_ND)
    assert loss_N.dtype == gradient_ND.dtype == torch.float32
    torch.testing.assert_close(loss_N, exact_N, rtol=2e-2, atol=0.3)
    assert not torch.equal(loss_N, exact_N)
