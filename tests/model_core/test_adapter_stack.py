"""Several adapters at once: the sum of their changes, in any order, onto an untouched base."""

import itertools

import pytest
import torch

from model_core.adapter import AdapterConfig, attach
from model_core.adapter_stack import merge_adapters
from model_core.errors import AdapterError
from model_core.nano import nano_base
from model_core.upcycle import base_sha256
from tests.model_core.test_adapter import MODULES, PARAMETERS, attached, outputs


@pytest.fixture
def stack(base):
    """A core on the release's targets, a LoRA of another rank that shares some, one of its own."""
    release = attached(base, "core")
    local = attached(base, "lora", rank=2, scaling=0.5, target_modules=MODULES[:1])
    other = attach(base.model, AdapterConfig("lora", 3, 1.0, ("decoder.*self_attn.v_proj",)))
    generator = torch.Generator().manual_seed(9)
    other.load_vector(torch.randn(other.size, generator=generator) * 0.1)
    return [release, local, other]


def test_merged_weights_are_the_base_plus_every_change(base, stack):
    merged = merge_adapters(base.model, stack).state_dict()
    expected = {name: tensor.clone() for name, tensor in base.model.state_dict().items()}
    for layer in itertools.chain.from_iterable(adapter.layers for adapter in stack):
        name = layer.name if layer.parameter else f"{layer.name}.weight"
        middle = layer.down if layer.core is None else layer.core @ layer.down
        expected[name] += layer.scaling * layer.up @ middle
    assert merged.keys() == expected.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)


def test_order_and_form_do_not_matter(base, stack, tmp_path):
    stack[0].save(tmp_path)
    forms = [tmp_path, stack[1].to_safetensors(), stack[2]]
    expected = outputs(merge_adapters(base.model, stack))
    for order in itertools.permutations(forms):
        merged = merge_adapters(base.model, order)
        torch.testing.assert_close(outputs(merged), expected, rtol=1e-5, atol=1e-5)


def test_each_adapter_counts(base, stack):
    everything = outputs(merge_adapters(base.model, stack))
    for left_out in stack:
        rest = [adapter for adapter in stack if adapter is not left_out]
        assert (outputs(merge_adapters(base.model, rest)) - everything).abs().max() > 1e-3


def test_one_alone_is_that_one_and_none_is_the_base(base, stack):
    assert merge_adapters(base.model, []) is base.model
    alone = outputs(merge_adapters(base.model, stack[:1]))
    torch.testing.assert_close(alone, outputs(stack[0].model), rtol=1e-4, atol=1e-5)


def test_neither_base_nor_adapters_change():
    base = nano_base()
    adapter = attached(base, "lora", target_parameters=PARAMETERS)
    before = adapter.vector()
    merge_adapters(base.model, [adapter, adapter])
    assert base_sha256(base.model) == base.base_sha256
    assert torch.equal(adapter.vector(), before)


def test_adapter_of_another_base_is_refused(tiny_base, stack):
    with pytest.raises(AdapterError):
        merge_adapters(tiny_base.model, stack[:1])
