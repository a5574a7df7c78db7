"""Oracle: per-subject gradients of every adapted layer of the speech model, experts included.

The engine's gradients of the mixture-of-experts Whisper that sites train are compared with running
ordinary autograd on one subject's recordings at a time.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from model_core.adapter import Adapter, AdapterConfig, attach, make_basis
from model_core.nano import nano_base
from model_core.training import collate, make_example, row_losses
from model_core.upcycle import MixtureConfig
from privacy.per_subject import PerSubjectEngine
from tests.privacy.per_subject_models import one_subject_at_a_time, relative_error

TEXTS = ("take one tablet", "no", "warfarin at night please", "with food", "twice a day")
ROW_SUBJECT = (0, 1, 1, 2, 0)  # two subjects with two recordings each, in no order
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
EVERY_LINEAR = r"model\.(en|de)coder\.layers\.\d+\.\w*attn\.(q|k|v|out)_proj"
EVERY_EXPERT = r"model\.(en|de)coder\.layers\.\d+\..*experts\.(up|down)_proj"


def adapter_of(kind: str, top_k: int, dtype: torch.dtype) -> tuple[Adapter, Tensor]:
    """An adapter on every attention projection and every expert stack, away from its start."""
    base = nano_base(seed=1, mixture=MixtureConfig(experts=4, top_k=top_k))
    config = AdapterConfig(kind, 3, 1.5, (EVERY_LINEAR,), (EVERY_EXPERT,))
    adapter = attach(base.model, config, make_basis(base.model, config) if kind == "core" else None)
    generator = torch.Generator().manual_seed(2)
    adapter.load_vector(0.1 * torch.randn(adapter.size, generator=generator))
    adapter.peft_model.to(dtype)
    for layer in adapter.layers:
        object.__setattr__(layer, "down", layer.down.to(dtype))
        object.__setattr__(layer, "up", layer.up.to(dtype))
        if layer.core is not None:
            object.__setattr__(layer, "core", layer.core.to(dtype))
    ids_BT, weight_BT = collate([make_example(base.tokenizer, t) for t in TEXTS], 0)
    states_BSD = torch.randn(len(TEXTS), 40, base.model.config.d_model, generator=generator)
    return adapter, functools.partial(_losses, adapter, states_BSD.to(dtype), ids_BT, weight_BT)


def _losses(
    adapter: Adapter, states_BSD: Tensor, ids_BT: Tensor, weight_BT: Tensor, rows: Tensor
) -> Tensor:
    return row_losses(adapter.model, states_BSD[rows], ids_BT[rows], weight_BT[rows])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["lora", "core"])
@pytest.mark.parametrize("top_k", [1, 2])
def test_equals_one_subject_at_a_time_on_the_speech_model(kind, top_k, dtype):
    adapter, losses = adapter_of(kind, top_k, dtype)
    row_subject_B = torch.tensor(ROW_SUBJECT)
    with adapter.training_mode():
        engine = PerSubjectEngine(adapter.layers)
        everyone = torch.arange(len(TEXTS))
        ours = engine.gradients(lambda: losses(everyone), row_subject_B, 3)
        oracle = one_subject_at_a_time(adapter.layers, losses, row_subject_B, 3)
    assert relative_error(ours, oracle) <= TOLERANCE[dtype]
    kinds = {layer.kind for layer in adapter.layers if layer.name.startswith("model.decoder")}
    assert kinds == {"linear", "experts"}
    start = 0
    for name, shape in adapter.tensor_specs():
        size = torch.Size(shape).numel()
        moved = ours[:, start : start + size].abs().sum()
        # The encoder is bypassed by cached states; everything in the decoder must have moved.
        assert bool(moved > 0) == name.startswith("model.decoder"), name
        start += size
