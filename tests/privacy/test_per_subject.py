"""The engine's gradients against one subject at a time, and what must not change them."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.mechanism import clip_and_sum
from privacy.per_subject import GradientError, PerSubjectEngine
from tests.privacy.per_subject_models import (
    TOKENS,
    WIDTH,
    SmallSpeech,
    adapters_on,
    one_subject_at_a_time,
    relative_error,
)

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


class Case:
    """A model, its adapters, and a batch of rows."""

    def __init__(self, kind, dtype=torch.float64, rows=7, seed=0, rank=3, **model):
        torch.manual_seed(seed)
        self.model = SmallSpeech(**model).to(dtype)
        self.layers = adapters_on(self.model, kind, rank)
        self.engine = PerSubjectEngine(self.layers)
        self.x_BTw = torch.randn(rows, TOKENS, WIDTH, dtype=dtype)
        self.target_BT = torch.randint(0, 7, (rows, TOKENS))

    def losses(self, rows):
        return self.model.losses(self.x_BTw[rows], self.target_BT[rows])

    def gradients(self, rows, row_subject_B, subjects):
        loss = functools.partial(self.losses, rows)
        return self.engine.gradients(loss, row_subject_B, subjects)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["lora", "core", "shared-core"])
@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("stable", [True, False])
@pytest.mark.parametrize(
    "row_subject", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 1, 1, 4, 4], [3, 0, 2, 0, 3, 3, 1]]
)
def test_equals_one_subject_at_a_time(dtype, kind, top_k, stable, row_subject):
    case = Case(kind, dtype, top_k=top_k, stable=stable)
    row_subject_B = torch.tensor(row_subject)
    subjects = 7
    ours = case.gradients(torch.arange(7), row_subject_B, subjects)
    oracle = one_subject_at_a_time(case.layers, case.losses, row_subject_B, subjects)
    assert relative_error(ours, oracle) <= TOLERANCE[dtype]
    absent = sorted(set(range(subjects)) - set(row_subject))
    assert not ours[absent].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rank", [1, 2, 4, 5])
@pytest.mark.parametrize("kind", ["lora", "core", "shared-core"])
def test_every_rank_and_experts_without_tokens(kind, rank, dtype):
    case = Case(kind, dtype, rows=2, rank=rank, experts=16)
    row_subject_B = torch.tensor([0, 1])
    ours = case.gradients(torch.arange(2), row_subject_B, 2)
    oracle = one_subject_at_a_time(case.layers, case.losses, row_subject_B, 2)
    assert relative_error(ours, oracle) <= TOLERANCE[dtype]
    unused = oracle[0].view(-1) == 0
    if kind != "shared-core":
        assert unused.any(), "16 experts and 5 tokens must leave an expert without tokens"
    assert not ours[0][unused].any()


@pytest.mark.parametrize("kind", ["lora", "core", "shared-core"])
def test_sums_to_the_batch_gradient_and_leaves_no_trace(kind):
    case = Case(kind)
    everyone = torch.arange(7)
    ours = case.gradients(everyone, everyone, 7).sum(0)
    batch = one_subject_at_a_time(case.layers, case.losses, torch.zeros(7, dtype=torch.long), 1)
    assert relative_error(ours, batch[0]) <= 1e-12
    assert not case.model.inp._forward_hooks
    assert not case.model.mixture.experts.deltas
    assert all(p.grad is None for p in case.model.parameters())


def test_hooks_are_removed_when_the_loss_fails():
    case = Case("lora")

    def loss():
        case.losses(torch.arange(7))
        raise KeyError("data gone")

    with pytest.raises(KeyError):
        case.engine.gradients(loss, torch.arange(7), 7)
    assert not case.model.inp._forward_hooks
    assert not case.model.mixture.experts.deltas


@settings(max_examples=25, deadline=None)
@given(
    row_subject=st.lists(st.integers(0, 4), min_size=1, max_size=8),
    kind=st.sampled_from(["lora", "core", "shared-core"]),
    top_k=st.sampled_from([1, 2]),
    data=st.data(),
)
def test_order_of_rows_and_subjects_does_not_matter(row_subject, kind, top_k, data):
    rows = len(row_subject)
    case = Case(kind, rows=rows, top_k=top_k)
    row_subject_B = torch.tensor(row_subject)
    first = case.gradients(torch.arange(rows), row_subject_B, 5)
    shuffled = torch.tensor(data.draw(st.permutations(range(rows))))
    renamed = torch.tensor(data.draw(st.permutations(range(5))))
    again = case.gradients(shuffled, renamed[row_subject_B[shuffled]], 5)
    assert torch.allclose(again[renamed], first, rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(row_subject=st.lists(st.integers(0, 3), min_size=1, max_size=7), alone=st.integers(0, 3))
def test_a_subject_alone_equals_itself_in_the_batch(row_subject, alone):
    case = Case("lora", rows=len(row_subject), top_k=2)
    row_subject_B = torch.tensor(row_subject)
    together = case.gradients(torch.arange(len(row_subject)), row_subject_B, 4)
    own_rows = (row_subject_B == alone).nonzero()[:, 0]
    by_itself = case.gradients(own_rows, torch.zeros(len(own_rows), dtype=torch.long), 1)
    assert torch.allclose(together[alone], by_itself[0], rtol=1e-10, atol=1e-12)


@settings(max_examples=15, deadline=None)
@given(
    row_subject=st.lists(st.integers(0, 4), min_size=1, max_size=9),
    cuts=st.sets(st.integers(1, 8), max_size=4),
)
def test_microbatches_accumulate_to_the_same(row_subject, cuts):
    rows = len(row_subject)
    case = Case("core", rows=rows)
    row_subject_B = torch.tensor(row_subject)
    whole = case.gradients(torch.arange(rows), row_subject_B, 5)
    parts = case.engine.new_gradients(5)
    for piece in torch.tensor_split(torch.arange(rows), sorted(cuts)):
        loss = functools.partial(case.losses, piece)
        case.engine.accumulate(parts, loss, row_subject_B[piece])
    assert torch.allclose(parts, whole, rtol=1e-10, atol=1e-12)


def batches_of(case, row_subject_B, microbatch):
    for rows in torch.arange(len(row_subject_B)).split(microbatch):
        yield functools.partial(case.losses, rows), row_subject_B[rows]


@pytest.mark.parametrize("microbatch", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("row_subject", [[0, 0, 0, 1, 2, 2, 4, 5, 5], [5, 5, 0, 0, 0, 3, 1, 1, 1]])
def test_streamed_lot_equals_clipping_at_once(microbatch, row_subject):
    case = Case("lora", rows=9)
    row_subject_B = torch.tensor(row_subject)
    whole = case.gradients(torch.arange(9), row_subject_B, 6)
    clipping_norm = float(whole.norm(dim=1).median())
    sum_D, norms_U = clip_and_sum(whole, clipping_norm)
    batches = batches_of(case, row_subject_B, microbatch)
    streamed_D, streamed_U = case.engine.clipped_sum(batches, 6, clipping_norm)
    assert torch.allclose(streamed_D, sum_D, rtol=1e-9, atol=1e-12)
    assert torch.allclose(streamed_U, norms_U, rtol=1e-9, atol=1e-12)


def test_streamed_lot_holds_only_the_current_subjects(monkeypatch):
    case = Case("lora", rows=9)
    held = []
    accumulate = case.engine.accumulate

    def watched(gradients_UD, loss, row_subject_B):
        held.append(len(gradients_UD))
        accumulate(gradients_UD, loss, row_subject_B)

    monkeypatch.setattr(case.engine, "accumulate", watched)
    case.engine.clipped_sum(batches_of(case, torch.arange(9), 2), 9, 1.0)
    assert held == [2, 2, 2, 2, 1]


def test_a_subject_that_returns_after_clipping_is_refused():
    case = Case("lora", rows=9)
    row_subject_B = torch.tensor([0, 0, 1, 1, 2, 2, 0, 3, 3])
    with pytest.raises(GradientError, match="counted twice"):
        case.engine.clipped_sum(batches_of(case, row_subject_B, 3), 4, 1.0)


def test_an_empty_lot_is_a_zero_sum():
    case = Case("lora")
    sum_D, norms_U = case.engine.clipped_sum([], 0, 1.0)
    assert sum_D.shape == (case.engine.size,)
    assert not sum_D.any()
    assert norms_U.shape == (0,)
    nobody = torch.empty(0, dtype=torch.long)
    assert case.engine.gradients(lambda: pytest.fail("ran"), nobody, 0).shape[0] == 0


def test_packing_follows_the_given_order():
    case = Case("lora")
    names = [tensor.name for tensor in case.engine.tensors]
    assert names[:3] == ["inp.down", "inp.up", "query.down"]
    backward = PerSubjectEngine(case.layers, tensors=names[::-1])
    everyone = torch.arange(7)
    ours = case.gradients(everyone, everyone, 7)
    theirs = backward.gradients(functools.partial(case.losses, everyone), everyone, 7)
    sizes = [tensor.size for tensor in case.engine.tensors]
    assert torch.equal(torch.cat(theirs.split(sizes[::-1], 1)[::-1], 1), ours)
    assert case.engine.size == sum(sizes) == ours.shape[1]


def test_half_precision_base_trains_its_adapter_in_single():
    case = Case("lora", torch.float32)
    oracle = case.gradients(torch.arange(7), torch.arange(7), 7)
    case.model.query.to(torch.bfloat16)
    case.model.query.register_forward_pre_hook(lambda _m, i: (i[0].to(torch.bfloat16),))
    original = case.losses

    with torch.autocast("cpu", torch.bfloat16):
        ours = case.engine.gradients(
            functools.partial(original, torch.arange(7)), torch.arange(7), 7
        )
    assert ours.dtype == torch.float32
    assert relative_error(ours, oracle) < 0.1
