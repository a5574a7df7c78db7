"""Convolutions and embeddings: gradients against a loop, against Opacus, and what is refused."""

from __future__ import annotations

import functools
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from privacy.errors import UnsupportedLayerError
from privacy.mechanism import clip_and_sum
from privacy.per_subject import PerSubjectEngine, layers_of
from tests.privacy.per_subject_models import relative_error

VOCABULARY, WIDTH, ROWS, LENGTH = 11, 8, 7, 12
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
ROW_SUBJECT = [0, 0, 1, 2, 2, 2, 3]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class SpeechFront(nn.Module):
    """An embedding and two strided 1-d convolutions, as Whisper's front end; a 2-d one; linear."""

    def __init__(self, **embedding):
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH, **embedding)
        self.conv1 = nn.Conv1d(WIDTH, 6, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(6, 10, kernel_size=3, stride=2, padding=2)
        self.plane = nn.Conv2d(1, 4, kernel_size=(3, 2), stride=(1, 2), padding=(1, 0))
        self.out = nn.Linear(4, 5)

    def forward(self, ids_BT):
        x = functional.gelu(self.conv1(self.tokens(ids_BT).transpose(1, 2)))
        x = functional.gelu(self.conv2(x))
        x = functional.gelu(self.plane(x.unsqueeze(1)))
        return self.out(x.flatten(2).transpose(1, 2)).logsumexp(-1).mean(1)


TARGETS = ["tokens", "conv1", "conv2", "plane", "out"]


def adapted(base=None, targets=TARGETS, dtype=torch.float32):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's own, of groups
        model = get_peft_model(
            base or SpeechFront(), LoraConfig(r=2, lora_alpha=3, target_modules=list(targets))
        )
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.3)
    return model.to(dtype)


def ids():
    return torch.randint(0, VOCABULARY, (ROWS, LENGTH))


def ours(model, ids_BT, row_subject, subjects):
    engine = PerSubjectEngine(layers_of(model))
    with model.disable_adapter():
        return engine.gradients(lambda: model(ids_BT), torch.tensor(row_subject), subjects)


def loop(model, ids_BT, row_subject, subjects):
    """peft's own arithmetic, one subject at a time."""
    trained = [tensor for layer in layers_of(model) for tensor in parameters_of(model, layer.name)]
    rows = []
    for subject in range(subjects):
        mine = torch.tensor(row_subject) == subject
        parts = torch.autograd.grad(model(ids_BT[mine]).sum(), trained)
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows)


def parameters_of(model, name):
    module = model.get_submodule(name)
    if "default" in module.lora_embedding_A:
        return module.lora_embedding_A["default"], module.lora_embedding_B["default"]
    return module.lora_A["default"].weight, module.lora_B["default"].weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("embedding", [{}, {"padding_idx": 3}])
@pytest.mark.parametrize("row_subject", [ROW_SUBJECT, [3, 0, 1, 2, 3, 1, 0]])
def test_equals_one_subject_at_a_time(dtype, embedding, row_subject):
    model, ids_BT = adapted(SpeechFront(**embedding), dtype=dtype), ids()
    oracle = loop(model, ids_BT, row_subject, 4)
    assert relative_error(ours(model, ids_BT, row_subject, 4), oracle) <= TOLERANCE[dtype]
    assert (oracle != 0).any(0).float().mean() > 0.5


def test_adapted_output_is_pefts():
    model, ids_BT = adapted(dtype=torch.float64), ids()
    seen = []
    engine = PerSubjectEngine(layers_of(model))

    def loss():
        seen.append(model(ids_BT))
        return seen[-1]

    with model.disable_adapter():
        engine.gradients(loss, torch.arange(ROWS), ROWS)
    torch.testing.assert_close(seen[0].detach(), model(ids_BT).detach(), rtol=1e-12, atol=1e-12)


def test_convolutions_equal_opacus():
    from opacus.grad_sample.utils import prepare_module

    model, ids_BT = adapted(targets=["conv1", "conv2", "plane", "out"]), ids()
    found = ours(model, ids_BT, list(range(ROWS)), ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Opacus' own, of torch's hooks
        theirs = prepare_module(model, grad_sample_mode="hooks", loss_reduction="sum")
        theirs(ids_BT).sum().backward()
    samples = [p.grad_sample.flatten(1) for p in model.parameters() if p.requires_grad]
    assert relative_error(found, torch.cat(samples, 1)) <= 1e-5


@pytest.mark.parametrize("microbatch", [1, 2, 3, 7])
def test_microbatches_accumulate(microbatch):
    model, ids_BT = adapted(dtype=torch.float64), ids()
    whole = ours(model, ids_BT, ROW_SUBJECT, 4)
    engine = PerSubjectEngine(layers_of(model))
    starts = range(0, ROWS, microbatch)
    batches = [
        (
            functools.partial(model, ids_BT[start : start + microbatch]),
            torch.tensor(ROW_SUBJECT[start : start + microbatch]),
        )
        for start in starts
    ]
    with model.disable_adapter():
        sum_D, norms_U = engine.clipped_sum(batches, 4, 0.1)
    expected_D, expected_U = clip_and_sum(whole, 0.1)
    torch.testing.assert_close(sum_D, expected_D, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(norms_U, expected_U, rtol=1e-9, atol=1e-12)


def test_sound_front_ends_pass_the_row_check():
    model, ids_BT = adapted(), ids()
    with model.disable_adapter():
        PerSubjectEngine(layers_of(model)).verify_rows(lambda: model(ids_BT), ROWS)


class WithPositions(nn.Module):
    """Positions looked up once for the whole batch and broadcast, as many text models do."""

    def __init__(self):
        super().__init__()
        self.positions = nn.Embedding(LENGTH, WIDTH)

    def forward(self, ids_BT):
        where_1T = torch.arange(ids_BT.shape[1]).unsqueeze(0)
        return (self.positions(where_1T) + ids_BT.unsqueeze(-1)).mean((1, 2))


def test_an_embedding_that_is_broadcast_over_rows_is_refused():
    model, ids_BT = adapted(WithPositions(), ["positions"]), ids()
    with pytest.raises(UnsupportedLayerError, match="positions sees 1 rows where the batch has 7"):
        ours(model, ids_BT, list(range(ROWS)), ROWS)


@pytest.mark.parametrize(
    ("base", "problem"),
    [
        (nn.Sequential(nn.Conv1d(4, 4, 3, groups=2)), "groups"),
        (nn.Sequential(nn.Conv1d(4, 4, 3, dilation=2)), "dilation"),
        (nn.Sequential(nn.Conv1d(4, 4, 3, padding="same")), "padding by name"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "other than zeros"),
        (nn.Sequential(nn.Embedding(5, 3, max_norm=1.0)), "renormalises"),
        (nn.Sequential(nn.Embedding(5, 3, scale_grad_by_freq=True)), "token counts"),
        (nn.Sequential(nn.Conv3d(2, 2, 1)), "Conv3d, which the engine does not know"),
    ],
)
def test_what_would_couple_rows_or_is_unknown_is_refused_by_name(base, problem):
    with pytest.raises(UnsupportedLayerError, match=rf"\.0\b.*{problem}"):
        layers_of(adapted(base, ["0"]))
