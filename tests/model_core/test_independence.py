"""An utterance is its own affair: no other row, no padding and no order reaches it.

For every variant of the mixture, since per-subject gradients stand on this.
"""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_core.base import make_base
from model_core.features import encode_mel, log_mel
from model_core.nano import nano_whisper
from model_core.training import Example, collate, row_losses
from model_core.upcycle import MIXTURES, mixtures

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def bases():
    return {name: make_base(nano_whisper(seed=2), mixture) for name, mixture in MIXTURES.items()}


def clip(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    loudness = 10 ** float(torch.empty(1).uniform_(-3, 0, generator=generator))
    samples = int(torch.randint(800, 16_000, (1,), generator=generator))
    return torch.randn(samples, generator=generator) * loudness


def chosen_experts(base, mel_BMT) -> list[torch.Tensor]:
    """Of each encoder block: the experts of every token, [B, T, K]."""
    seen: list[torch.Tensor] = []
    encoder = base.model.model.encoder
    blocks = [layer.fc1 for layer in encoder.layers]

    def record(block, inputs, _output):
        x_BTD = inputs[0]
        routing = block.choose(x_BTD.reshape(-1, x_BTD.shape[-1]))
        expert_NK = routing.expert_S[routing.slot_NK]
        seen.append(expert_NK.view(*x_BTD.shape[:2], -1))

    handles = [block.register_forward_hook(record) for block in blocks]
    try:
        encode_mel(encoder, mel_BMT)
    finally:
        for handle in handles:
            handle.remove()
    return seen


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(seeds=st.lists(st.integers(0, 1_000), min_size=2, max_size=5, unique=True))
@pytest.mark.parametrize("variant", MIXTURES)
def test_batch_of_one_equals_batch_of_many(bases, variant, seeds):
    encoder = bases[variant].model.model.encoder
    clips = [clip(seed) for seed in seeds]
    together = encode_mel(encoder, log_mel(clips, 1.2))
    for row, each in enumerate(clips):
        alone = encode_mel(encoder, log_mel([each], 1.2))[0]
        assert (together[row] - alone).abs().max() <= TOLERANCE


@torch.no_grad()
@settings(max_examples=5, deadline=None)
@given(seeds=st.lists(st.integers(0, 1_000), min_size=2, max_size=5, unique=True))
@pytest.mark.parametrize("variant", MIXTURES)
def test_routing_depends_on_the_utterance_alone(bases, variant, seeds):
    clips = [clip(seed) for seed in seeds]
    together = chosen_experts(bases[variant], log_mel(clips, 1.2))
    for row, each in enumerate(clips):
        alone = chosen_experts(bases[variant], log_mel([each], 1.2))
        for batch_BTK, own_BTK in zip(together, alone, strict=True):
            assert torch.equal(batch_BTK[row], own_BTK[0])


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=2, max_size=5),
    order=st.randoms(use_true_random=False),
)
@pytest.mark.parametrize("variant", MIXTURES)
def test_padding_and_order_do_not_reach_a_loss(bases, variant, lengths, order):
    base = bases[variant]
    generator = torch.Generator().manual_seed(sum(lengths))
    examples = [
        Example(
            tuple(torch.randint(256, (n,), generator=generator).tolist()), (0.0, *(1.0,) * (n - 1))
        )
        for n in lengths
    ]
    states_BSD = torch.randn(len(lengths), 20, 32, generator=generator)
    alone = [
        row_losses(base.model, states_BSD[i : i + 1], *collate([e], base.tokenizer.end))[0]
        for i, e in enumerate(examples)
    ]
    rows = list(range(len(examples)))
    order.shuffle(rows)
    ids_BT, weight_BT = collate([examples[i] for i in rows], base.tokenizer.end)
    together = row_losses(base.model, states_BSD[rows], ids_BT, weight_BT)
    for row, index in enumerate(rows):
        assert abs(together[row] - alone[index]) <= TOLERANCE


def test_a_leak_would_be_seen(bases):
    """The same comparison on a block whose routing looks at the batch, as capacity limits do."""
    base = bases["upcycled-shared"]
    leaky = copy.deepcopy(base.model)
    for block in mixtures(leaky):
        with torch.no_grad():
            block.experts.up_proj.normal_(std=0.3)

        def crowded(x_ND, choose=block.choose):
            return choose(x_ND - x_ND.mean(0))

        block.choose = crowded
    clips = [clip(1), clip(2)]
    with torch.no_grad():
        together = encode_mel(leaky.model.encoder, log_mel(clips, 1.2))
        alone = encode_mel(leaky.model.encoder, log_mel(clips[:1], 1.2))
    assert (together[0] - alone[0]).abs().max() > TOLERANCE
