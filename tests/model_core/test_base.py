"""The base folder: written once, verified at every load."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_core.base import load_base, prepare_base, rebased, save_base
from model_core.errors import WeightsError
from model_core.nano import write_nano_checkpoint
from model_core.upcycle import MixtureConfig


@pytest.fixture
def folder(base, tmp_path):
    save_base(base, tmp_path / "base")
    return tmp_path / "base"


def test_round_trip(base, folder):
    loaded = load_base(folder, expected_sha256=base.base_sha256)
    assert loaded.base_sha256 == base.base_sha256
    assert (loaded.mixture, loaded.rules) == (base.mixture, base.rules)
    assert loaded.tokenizer.encode("warfarin") == base.tokenizer.encode("warfarin")
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_base_written_before_there_were_variants_still_loads(base, folder):
    config = json.loads((folder / "config.json").read_text())
    del config["auricle"]["mixture"]["variant"]
    (folder / "config.json").write_text(json.dumps(config))
    assert load_base(folder, base.base_sha256).mixture == base.mixture


def test_half_precision_on_disk_where_exact(folder):
    stored = load_file(folder / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}


def test_values_that_half_precision_cannot_hold_stay_whole(base, tmp_path):
    altered = base.model.state_dict()["model.encoder.layer_norm.weight"]
    keep = altered.clone()
    try:
        altered[0] = 1.00001
        save_base(rebased(base, base.model), tmp_path)
        assert load_base(tmp_path).base_sha256 != base.base_sha256
    finally:
        altered.copy_(keep)


def test_other_base_than_planned(base, folder):
    with pytest.raises(WeightsError) as caught:
        load_base(folder, expected_sha256="ab" * 32)
    assert caught.value.code == "base-checksum"
    assert "planned" in caught.value.problem
    assert caught.value.remedy


def test_one_changed_weight_is_found(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.decoder.layers.0.fc1.router.weight"][0, 0] += 1
    save_file(tensors, path)
    with pytest.raises(WeightsError) as caught:
        load_base(folder)
    assert caught.value.code == "base-checksum"


def test_missing_base(tmp_path):
    with pytest.raises(WeightsError) as caught:
        load_base(tmp_path)
    assert caught.value.code == "base-missing"


@pytest.mark.parametrize("fault", ["format", "rules", "no-json", "lost-tensor", "no-weights"])
def test_malformed_base(folder, fault):
    config = json.loads((folder / "config.json").read_text())
    if fault == "format":
        config["auricle"]["format"] = "auricle/base/v9"
    elif fault == "rules":
        config["auricle"]["decoding"]["beam"] = 5
    elif fault == "lost-tensor":
        tensors = load_file(folder / "model.safetensors")
        del tensors["model.decoder.layer_norm.bias"]
        save_file(tensors, folder / "model.safetensors")
    elif fault == "no-weights":
        (folder / "model.safetensors").unlink()
    text = "{" if fault == "no-json" else json.dumps(config)
    (folder / "config.json").write_text(text)
    with pytest.raises(WeightsError) as caught:
        load_base(folder)
    assert caught.value.code == "base-malformed"


def test_prepare_makes_once_and_reuses(tmp_path):
    source = write_nano_checkpoint(tmp_path / "source")
    first = prepare_base(str(source), tmp_path / "base")
    made = (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns
    assert prepare_base(str(source), tmp_path / "base").base_sha256 == first.base_sha256
    assert prepare_base(None, tmp_path / "base").base_sha256 == first.base_sha256
    assert (tmp_path / "base" / "model.safetensors").stat().st_mtime_ns == made
    with pytest.raises(WeightsError, match="another mixture"):
        prepare_base(str(source), tmp_path / "base", MixtureConfig(experts=8))


def test_a_folder_with_another_checkpoints_base_is_refused(tmp_path):
    """Or `base prepare base --folder base` would hand out the tiny.en that was there."""
    prepare_base(str(write_nano_checkpoint(tmp_path / "one")), tmp_path / "base")
    other = write_nano_checkpoint(tmp_path / "two")
    weights = load_file(other / "model.safetensors")
    weights["model.encoder.layer_norm.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match="another checkpoint") as caught:
        prepare_base(str(other), tmp_path / "base")
    assert caught.value.code == "base-malformed"


def test_no_local_path_is_written(folder, tmp_path):
    assert str(tmp_path) not in (folder / "config.json").read_text()
