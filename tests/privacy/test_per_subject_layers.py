"""peft layers against Opacus, one utterance's bound, and rows that cannot be told apart."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from privacy.errors import UnsupportedLayerError
from privacy.per_subject import (
    GradientError,
    PerSubjectEngine,
    layers_of,
)
from tests.privacy.per_subject_models import (
    TOKENS,
    WIDTH,
    Dense,
    SmallSpeech,
    SortedRouting,
    adapters_on,
    peft_model,
    relative_error,
)

ROWS = 6


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(ROWS, TOKENS, WIDTH), torch.randint(0, 7, (ROWS, TOKENS))


def row_losses(model, batch):
    logits = model(batch[0]).transpose(1, 2)
    return functional.cross_entropy(logits, batch[1], reduction="none").mean(1)


def row_gradients(model, batch):
    engine = PerSubjectEngine(layers_of(model))
    with model.disable_adapter():
        loss = functools.partial(row_losses, model, batch)
        return engine.gradients(loss, torch.arange(ROWS), ROWS)


def test_peft_layers_equal_opacus(batch):
    from opacus.grad_sample.utils import prepare_module

    model = peft_model()
    ours = row_gradients(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus' own, of torch's hooks
        theirs = prepare_module(model, grad_sample_mode="hooks", loss_reduction="sum")
        row_losses(theirs, batch).sum().backward()
    samples = [p.grad_sample.flatten(1) for p in model.parameters() if p.requires_grad]
    assert relative_error(ours, torch.cat(samples, 1)) <= 1e-5


def test_peft_layers_equal_peft_one_row_at_a_time(batch):
    model = peft_model(use_rslora=True)
    ours = row_gradients(model, batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    for row in range(ROWS):
        loss = row_losses(model, tuple(part[row : row + 1] for part in batch)).sum()
        parts = torch.autograd.grad(loss, trained)
        oracle = torch.cat([part.flatten() for part in parts])
        assert relative_error(ours[row], oracle) <= 1e-5


def test_active_peft_adapter_is_refused(batch):
    model = peft_model()
    engine = PerSubjectEngine(layers_of(model))
    loss = functools.partial(row_losses, model, batch)
    with pytest.raises(UnsupportedLayerError, match=r"q_proj.*still active") as refusal:
        engine.gradients(loss, torch.arange(ROWS), ROWS)
    assert refusal.value.code == "adapter-active"


def test_occupied_delta_is_refused():
    model = SmallSpeech()
    engine = PerSubjectEngine(adapters_on(model, "lora"))
    model.mixture.experts.deltas["up_proj"] = lambda x, _routing: x
    with pytest.raises(UnsupportedLayerError, match=r"experts\.up_proj is still active"):
        engine.gradients(lambda: torch.zeros(1), torch.tensor([0]), 1)
    assert not model.inp._forward_hooks


class Flattening(Dense):
    """The usual mixture block's habit: tokens become rows before the adapted layers."""

    def forward(self, x):
        hidden = functional.relu(self.up_proj(self.q_proj(x).reshape(-1, WIDTH)))
        return self.down_proj(hidden).view(*x.shape[:2], 7)


def test_flattened_tokens_in_a_linear_layer_are_refused(batch):
    with pytest.raises(UnsupportedLayerError, match=r"up_proj sees 30 rows .* 6: .*flattened"):
        row_gradients(peft_model(Flattening()), batch)


@pytest.mark.parametrize("top_k", [1, 2])
def test_one_utterance_contributes_at_most_the_clipping_norm(top_k):
    """An utterance of equal frames: clipped frame by frame it would add up to TOKENS·C."""
    torch.manual_seed(0)
    model = SmallSpeech(top_k=top_k)
    engine = PerSubjectEngine(adapters_on(model, "lora"))
    x_BTw = torch.randn(3, 1, WIDTH).expand(3, TOKENS, WIDTH)
    target_BT = torch.randint(0, 7, (3, 1)).expand(3, TOKENS)
    clipping_norm = 1e-3

    def contribution(rows):
        batches = [(lambda: model.losses(x_BTw[rows], target_BT[rows]), torch.arange(len(rows)))]
        return engine.clipped_sum(batches, len(rows), clipping_norm)[0]

    change_D = contribution([0, 1, 2]) - contribution([0, 1])
    assert float(change_D.norm()) == pytest.approx(clipping_norm, rel=1e-4)


def test_a_spoilt_row_spoils_no_other_subject():
    torch.manual_seed(0)
    model = SmallSpeech(top_k=2)
    engine = PerSubjectEngine(adapters_on(model, "lora"))
    x_BTw, target_BT = torch.randn(4, TOKENS, WIDTH), torch.zeros(4, TOKENS, dtype=torch.long)
    everyone = torch.arange(4)
    clean = engine.gradients(lambda: model.losses(x_BTw, target_BT), everyone, 4)
    x_BTw[2, 3] = torch.inf
    spoilt = engine.gradients(lambda: model.losses(x_BTw, target_BT), everyone, 4)
    assert not torch.isfinite(spoilt[2]).all()
    others = torch.tensor([0, 1, 3])
    assert torch.allclose(spoilt[others], clean[others], rtol=1e-4, atol=1e-6)


class DroppingMixture(nn.Module):
    """Wraps a mixture's experts and tampers with what the delta is told."""

    def __init__(self, experts, tamper):
        super().__init__()
        self.inner, self.tamper = experts, tamper

    def forward(self, x_Sw, routing):
        return self.inner(x_Sw, self.tamper(routing))


def dropped(routing):
    token_S = routing.token_S.clone()
    token_S[token_S == 0] = 1  # the first token lost its place to the second
    return SortedRouting(token_S, routing.expert_S, routing.offsets_E)


def shifted(routing):
    offsets_E = routing.offsets_E.clone()
    offsets_E[0] += 1
    return SortedRouting(routing.token_S, routing.expert_S, offsets_E)


@pytest.mark.parametrize(
    ("tamper", "rows", "problem"),
    [
        (dropped, 4, "every token equally often"),
        (shifted, 4, "offsets do not match"),
        (lambda routing: routing, 3, "20 tokens do not divide into the batch's 3 rows"),
    ],
)
def test_routing_that_hides_its_rows_is_refused(tamper, rows, problem):
    torch.manual_seed(0)
    model = SmallSpeech()
    layers = adapters_on(model, "lora")[3:]
    model.mixture.experts = DroppingMixture(model.mixture.experts, tamper)
    x_BTw, target_BT = torch.randn(4, TOKENS, WIDTH), torch.zeros(4, TOKENS, dtype=torch.long)
    with pytest.raises(UnsupportedLayerError, match=problem) as refusal:
        PerSubjectEngine(layers).gradients(
            lambda: model.losses(x_BTw, target_BT)[:rows], torch.arange(rows), rows
        )
    assert refusal.value.code == "routing-unsupported"


class TimeFirst(Dense):
    """[T, B, width] inside; with T = B no shape tells."""

    def forward(self, x):
        return super().forward(x.transpose(0, 1)).transpose(0, 1)


class BatchCentred(Dense):
    """A statistic of the batch, written in code where no module shows it."""

    def forward(self, x):
        hidden = self.q_proj(x)
        return self.down_proj(functional.gelu(self.up_proj(hidden - hidden.mean(0))))


@pytest.mark.parametrize("base", [TimeFirst, BatchCentred])
def test_verify_rows_finds_crossed_rows(base):
    torch.manual_seed(0)
    batch = torch.randn(ROWS, ROWS, WIDTH), torch.randint(0, 7, (ROWS, ROWS))
    model = peft_model(base())
    engine = PerSubjectEngine(layers_of(model))
    with (
        model.disable_adapter(),
        pytest.raises(UnsupportedLayerError, match=r"reaches other rows.*q_proj"),
    ):
        engine.verify_rows(functools.partial(row_losses, model, batch), ROWS)


@pytest.mark.parametrize("rows", [1, 2, 5])
@pytest.mark.parametrize("top_k", [1, 2])
def test_verify_rows_passes_a_sound_model(rows, top_k):
    torch.manual_seed(0)
    model = SmallSpeech(top_k=top_k)
    x_BTw, target_BT = torch.randn(rows, TOKENS, WIDTH), torch.zeros(rows, TOKENS).long()
    engine = PerSubjectEngine(adapters_on(model, "lora"))
    engine.verify_rows(lambda: model.losses(x_BTw, target_BT), rows)


@pytest.mark.parametrize(
    ("losses", "row_subject_B", "subjects", "problem"),
    [
        (torch.tensor(1.0), torch.tensor([0, 1]), 2, "returned shape"),
        (torch.ones(3), torch.tensor([0, 1]), 2, "returned shape"),
        (torch.ones(2), torch.tensor([0, 2]), 2, "names subject 2 of 2"),
        (torch.ones(2), torch.tensor([-1, 0]), 2, "names subject -1 of 2"),
        (torch.ones(2), torch.tensor([0.0, 1.0]), 2, "one integer per row|float32"),
    ],
)
def test_bad_rows_and_losses_are_named(losses, row_subject_B, subjects, problem):
    model = peft_model()
    engine = PerSubjectEngine(layers_of(model))
    with model.disable_adapter(), pytest.raises(GradientError, match=problem):
        engine.gradients(lambda: losses, row_subject_B, subjects)
