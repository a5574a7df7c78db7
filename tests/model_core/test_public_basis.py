"""The public basis spans the leading directions of per-utterance gradients, taken one at a time."""

import dataclasses

import pytest
import torch

from model_core.adapter import attach
from model_core.adapter_targets import AdapterConfig
from model_core.errors import AdapterError
from model_core.nano import nano_base
from model_core.public_basis import public_basis
from model_core.training import collate, make_example, row_losses
from model_core.twin import twin
from model_core.upcycle import MixtureConfig, base_sha256

LINEAR = "model.decoder.layers.1.encoder_attn.q_proj"
UP = "model.decoder.layers.1.fc1.experts.up_proj"
DOWN = "model.decoder.layers.1.fc1.experts.down_proj"
TEXTS = ("give metformin", "stop", "open an escrow account today", "no more warfarin", "is it on")
RANK = 3
CONFIG = AdapterConfig("core", RANK, 1.0, (LINEAR,), (UP, DOWN))


def public(base, terms=()):
    generator = torch.Generator().manual_seed(5)
    states_BND = torch.randn(len(TEXTS), 40, 32, generator=generator).half()
    examples = [make_example(base.tokenizer, text, terms=terms, other_weight=0.1) for text in TEXTS]
    return states_BND, examples


def gradients_one_at_a_time(base, states_BND, examples):
    """Per utterance, the gradient of each target's weight; a stack's experts are one matrix."""
    model = twin(base.model, own={id(p) for p in base.model.parameters()})
    weights = {name: model.get_parameter(name) for name in (f"{LINEAR}.weight", UP, DOWN)}
    for weight in weights.values():
        weight.requires_grad_()
    found = []
    for row, example in enumerate(examples):
        ids_BT, weight_BT = collate([example], base.tokenizer.end)
        loss = row_losses(model, states_BND[row : row + 1], ids_BT, weight_BT).sum()
        grads = torch.autograd.grad(loss, list(weights.values()))
        whole = [grad.sum(0) if grad.dim() == 3 else grad for grad in grads]
        norm = torch.cat([grad.flatten() for grad in whole]).norm()
        found.append([grad / norm for grad in whole])
    return dict(
        zip((LINEAR, UP, DOWN), (torch.stack(g) for g in zip(*found, strict=True)), strict=True)
    )


@pytest.mark.parametrize("top_k", [1, 2])
def test_factors_span_the_leading_gradient_directions(top_k):
    base = nano_base(mixture=MixtureConfig(top_k=top_k))
    states_BND, examples = public(base, terms=("metformin", "warfarin"))
    basis = public_basis(base, CONFIG, states_BND, examples)
    for name, gradients_BOI in gradients_one_at_a_time(base, states_BND, examples).items():
        down, up = basis[f"{name}.down"], basis[f"{name}.up"]
        if name != LINEAR:
            assert torch.equal(down, down[:1].expand_as(down))
            assert torch.equal(up, up[:1].expand_as(up))
            down, up = down[0], up[0]
        torch.testing.assert_close(down @ down.T, torch.eye(RANK), rtol=0, atol=1e-5)
        torch.testing.assert_close(up.T @ up, torch.eye(RANK), rtol=0, atol=1e-5)
        for factor, sides in ((down.T, gradients_BOI), (up, gradients_BOI.mT)):
            moment = torch.einsum("boi,boj->ij", sides, sides)
            kept = (factor.T @ moment @ factor).diagonal()
            expected = torch.linalg.eigvalsh(moment).flip(0)[:RANK]
            torch.testing.assert_close(kept, expected, rtol=1e-3, atol=1e-6)


def test_basis_fits_an_adapter_that_changes_nothing_yet(base):
    basis = public_basis(base, CONFIG, *public(base))
    adapter = attach(base.model, CONFIG, basis)
    assert adapter.size == 3 * RANK * RANK
    assert not adapter.vector().any()


def test_the_base_is_left_as_it_was(base):
    public_basis(base, CONFIG, *public(base))
    assert base_sha256(base.model) == base.base_sha256
    assert not base.model.get_submodule("model.decoder.layers.1.fc1.experts").deltas
    assert not base.model.get_submodule(LINEAR)._forward_hooks


def test_result_does_not_depend_on_neighbours(base, monkeypatch):
    together = public_basis(base, CONFIG, *public(base))
    monkeypatch.setattr("model_core.public_basis._BATCH", 2)
    apart = public_basis(base, CONFIG, *public(base))
    for name, factor in together.items():
        # Eigenvectors are unique up to their sign.
        agreement = (factor * apart[name]).sum(-1 if name.endswith("down") else -2).abs()
        torch.testing.assert_close(agreement, torch.ones_like(agreement), rtol=0, atol=1e-3)


@pytest.mark.parametrize("fault", ["rank", "no-gradient"])
def test_faults_are_named(base, fault):
    states_BND, examples = public(base)
    config = dataclasses.replace(CONFIG, rank=33) if fault == "rank" else CONFIG
    if fault == "no-gradient":
        states_BND, examples = states_BND[:0], []
    with pytest.raises(AdapterError) as caught:
        public_basis(base, config, states_BND, examples)
    assert caught.value.code == "adapter-basis"
