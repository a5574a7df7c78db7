"""Adapters: neutral at first, exact through peft, files with exactly the keys of a plain LoRA."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from safetensors.torch import load, save

from model_core.adapter import (
    AdapterConfig,
    attach,
    basis_from_bytes,
    basis_sha256,
    basis_to_bytes,
    load_adapter,
    make_basis,
)
from model_core.errors import AdapterError
from model_core.nano import nano_base
from model_core.twin import twin
from model_core.upcycle import base_sha256

MODULES = ("encoder_attn.q_proj", "decoder.layers.1.encoder_attn.(v|out)_proj")
PARAMETERS = ("decoder.*experts.up_proj", "decoder.layers.1.fc1.experts.down_proj")
KINDS = ("lora", "core")


def config(kind: str, **changes) -> AdapterConfig:
    fields = {
        "kind": kind,
        "rank": 4,
        "scaling": 2.0,
        "target_modules": MODULES,
        "target_parameters": PARAMETERS,
    }
    return AdapterConfig(**(fields | changes))


def attached(base, kind: str, *, filled: bool = True, **changes):
    wanted = config(kind, **changes)
    basis = make_basis(base.model, wanted) if kind == "core" else None
    adapter = attach(base.model, wanted, basis)
    if filled:
        generator = torch.Generator().manual_seed(5)
        adapter.load_vector(torch.randn(adapter.size, generator=generator) * 0.1)
    return adapter


def outputs(model) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    states_BSD = torch.randn(2, 30, 32, generator=generator)
    ids_BT = torch.randint(0, 256, (2, 12), generator=generator)
    with torch.no_grad():
        return model(encoder_outputs=(states_BSD,), decoder_input_ids=ids_BT).logits


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_adapter_changes_nothing(base, kind):
    adapter = attached(base, kind, filled=False)
    assert torch.equal(outputs(adapter.model), outputs(base.model))


@pytest.mark.parametrize("kind", KINDS)
def test_targets_are_resolved_to_exact_names(base, kind):
    adapter = attached(base, kind)
    names = [layer.name for layer in adapter.layers]
    assert "model.decoder.layers.1.encoder_attn.out_proj" in names
    assert "model.decoder.layers.0.encoder_attn.out_proj" not in names
    assert "model.decoder.layers.0.fc1.experts.up_proj" in names
    assert not any(name.startswith("model.encoder.") for name in names)
    again = attached(base, kind, target_modules=adapter.config.target_modules)
    assert again.tensor_specs() == adapter.tensor_specs()


@pytest.mark.parametrize("kind", KINDS)
def test_factors_say_what_peft_computes(base, kind):
    """scaling · B R A of every layer is the change that merging makes to its weight."""
    adapter = attached(base, kind)
    merged = adapter.merged().state_dict()
    frozen = base.model.state_dict()
    for layer in adapter.layers:
        name = layer.name if layer.parameter else f"{layer.name}.weight"
        middle = layer.down if layer.core is None else layer.core @ layer.down
        expected = layer.scaling * layer.up @ middle
        torch.testing.assert_close(merged[name] - frozen[name], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_model_computes_the_same_and_stands_alone(base, kind):
    adapter = attached(base, kind)
    expected = outputs(adapter.model)
    merged = adapter.merged()
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-4, atol=1e-4)
    adapter.load_vector(torch.zeros(adapter.size))
    torch.testing.assert_close(outputs(merged), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_base_is_never_changed(kind):
    base = nano_base()
    before = outputs(base.model)
    adapter = attached(base, kind)
    adapter.merged()
    load_adapter(base.model, adapter.to_safetensors())
    assert base_sha256(base.model) == base.base_sha256
    assert torch.equal(outputs(base.model), before)


@pytest.mark.parametrize("kind", KINDS)
def test_training_mode_silences_peft_and_restores_it(base, kind):
    adapter = attached(base, kind)
    adapted = outputs(adapter.model)
    with adapter.training_mode():
        assert torch.equal(outputs(adapter.model), outputs(base.model))
    assert torch.equal(outputs(adapter.model), adapted)


@settings(max_examples=15, deadline=None)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**31))
def test_vector_round_trip(base, kind, seed):
    adapter = attached(base, kind, filled=False)
    vector = torch.randn(adapter.size, generator=torch.Generator().manual_seed(seed))
    adapter.load_vector(vector)
    assert torch.equal(adapter.vector(), vector)
    sizes = [torch.Size(shape).numel() for _, shape in adapter.tensor_specs()]
    assert sum(sizes) == adapter.size
    first = adapter.layers[0].trainable[0][1]
    assert torch.equal(vector[: sizes[0]].view(first.shape), first)


@pytest.mark.parametrize("wrong", ["short", "long", "double", "nan", "matrix"])
def test_vector_that_does_not_fit(base, wrong):
    adapter = attached(base, "core")
    before = adapter.vector()
    vector = {
        "short": before[:-1],
        "long": torch.cat([before, before[:1]]),
        "double": before.double(),
        "nan": torch.full_like(before, torch.nan),
        "matrix": before[None],
    }[wrong]
    with pytest.raises(AdapterError) as caught:
        adapter.load_vector(vector)
    assert caught.value.code == "adapter-shape"
    assert torch.equal(adapter.vector(), before)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_round_trip(base, kind):
    adapter = attached(base, kind)
    data = adapter.to_safetensors()
    assert data == adapter.to_safetensors()
    loaded = load_adapter(base.model, data)
    assert loaded.config.kind == "lora"
    assert torch.equal(outputs(loaded.model), outputs(adapter.model))
    assert loaded.to_safetensors() == data


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_stock_peft_loads_the_folder(base, kind, tmp_path):
    adapter = attached(base, kind)
    adapter.save(tmp_path)
    stock = PeftModel.from_pretrained(twin(base.model), tmp_path)
    assert torch.equal(outputs(stock), outputs(adapter.model))
    assert torch.equal(outputs(load_adapter(base.model, tmp_path).model), outputs(adapter.model))


def test_exact_key_set(base):
    adapter = attached(base, "core")
    stem = "base_model.model.model.decoder.layers"
    linear = [f"{layer}.encoder_attn.q_proj" for layer in (0, 1)]
    linear += [f"1.encoder_attn.{name}_proj" for name in ("v", "out")]
    # Layer 1 adapts both projections, so the one wrapped first lies one base_layer further in.
    stacks = ["0.fc1.experts", "1.fc1.experts", "1.fc1.experts.base_layer"]
    expected = {f"{stem}.{n}.lora_{f}.weight" for n in linear + stacks for f in "AB"}
    assert set(load(adapter.to_safetensors())) == expected


@pytest.mark.parametrize("fault", ["lost", "extra", "shape", "nan", "half", "bytes", "metadata"])
def test_altered_adapters_are_refused(base, fault):
    data = attached(base, "lora").to_safetensors()
    header_size = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + header_size])["__metadata__"]
    state = load(data)
    name = sorted(state)[0]
    if fault == "lost":
        del state[name]
    elif fault == "extra":
        state["base_model.model.proj_out.weight"] = torch.zeros(1)
    elif fault == "shape":
        state[name] = state[name][:-1].contiguous()
    elif fault == "nan":
        state[name][0, 0] = torch.nan
    elif fault == "half":
        state[name] = state[name].half()
    altered = save(state, None if fault == "metadata" else metadata)
    with pytest.raises(AdapterError):
        load_adapter(base.model, data[:-5] if fault == "bytes" else altered)


def test_adapter_of_another_base_is_refused(base, tiny_base):
    with pytest.raises(AdapterError):
        load_adapter(tiny_base.model, attached(base, "lora").to_safetensors())


def test_released_bytes_name_no_local_path(base, tmp_path):
    adapter = attached(base, "core")
    adapter.save(tmp_path)
    for path in tmp_path.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


@pytest.mark.parametrize("wrong", [("no_such_layer",), ("q_proj", "q_prj"), ("(",)])
def test_misspelt_target_is_an_error(base, wrong):
    with pytest.raises(AdapterError) as caught:
        attach(base.model, config("lora", target_modules=wrong))
    assert caught.value.code == "adapter-target"


def test_basis_round_trip_and_name(base):
    basis = make_basis(base.model, config("core"))
    data = basis_to_bytes(basis)
    again = basis_from_bytes(data)
    assert all(torch.equal(again[name], basis[name]) for name in basis)
    assert basis_to_bytes(again) == data
    basis[next(iter(basis))][0] += 1
    assert basis_sha256(basis_to_bytes(basis)) != basis_sha256(data)


def test_basis_spans_the_weights_leading_directions(base):
    wanted = config("core", rank=32, target_modules=("decoder.layers.0.self_attn.q_proj",))
    basis = make_basis(base.model, AdapterConfig("core", 32, 1.0, wanted.target_modules))
    name = "model.decoder.layers.0.self_attn.q_proj"
    weight = base.model.get_submodule(name).weight
    torch.testing.assert_close(basis[f"{name}.up"] @ basis[f"{name}.down"], weight)


@pytest.mark.parametrize("fault", ["none", "lost", "rank", "nan", "bytes", "for-lora"])
def test_basis_that_does_not_fit(base, fault):
    wanted = config("core")
    basis = make_basis(base.model, wanted)
    name = next(iter(basis))
    if fault == "lost":
        del basis[name]
    elif fault == "rank":
        basis = make_basis(base.model, config("core", rank=8))
    elif fault == "nan":
        basis[name][0] = torch.nan
    data = b"not a basis" if fault == "bytes" else basis_to_bytes(basis)
    kind = "lora" if fault == "for-lora" else "core"

    def use() -> None:
        parsed = basis_from_bytes(data)
        attach(base.model, config(kind), None if fault == "none" else parsed)

    with pytest.raises(AdapterError) as caught:
        use()
    assert caught.value.code == "adapter-basis"
