"""The exported model: what torch computes, sparse and integer in fact, verified when loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from model_core.adapter import AdapterConfig, attach
from model_core.audio import RATE_HZ
from model_core.base import SpeechBase, rebased
from model_core.cached_decoder import CachedDecoder
from model_core.decode import greedy
from model_core.errors import ExportError
from model_core.experts import MixtureFeedForward
from model_core.export.cost import multiply_adds
from model_core.export.folder import Exported, export_onnx, load_onnx, quantise_onnx
from model_core.export.graph import export_encoder
from model_core.export.modules import LoopedMixture
from model_core.export.quantise import to_blocks
from model_core.export.runtime import open_session
from model_core.export.transcribe import OnnxTranscriber
from model_core.features import MAX_WINDOW_S, encode_mel, log_mel
from model_core.nano import nano_base, nano_whisper
from model_core.sound import cut_at_pauses
from model_core.transcribe import clip_window_s
from model_core.upcycle import MixtureConfig

FRAMES = (100, 334, 1000)
LINEAR = ("encoder_attn.v_proj", "self_attn.q_proj")
EXPERTS = (".*experts.up_proj", ".*experts.down_proj")


def mel(frames: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 80, frames, generator=generator)


def one_encoder_layer(model):
    """Less to trace: an export takes seconds for each layer."""
    model.model.encoder.layers = model.model.encoder.layers[:1]
    return model


@pytest.fixture(scope="module")
def speech() -> SpeechBase:
    """A nano mixture with a random adapter merged in, so that its experts differ."""
    nano = nano_base()
    one_encoder_layer(nano.model)
    adapter = attach(nano.model, AdapterConfig("lora", 4, 1.0, LINEAR, EXPERTS))
    generator = torch.Generator().manual_seed(1)
    adapter.load_vector(0.3 * torch.randn(adapter.size, generator=generator))
    return rebased(nano, adapter.merged())


@pytest.fixture(scope="module")
def exported(speech, tmp_path_factory) -> Exported:
    return export_onnx(speech, tmp_path_factory.mktemp("float32"))


@pytest.fixture(scope="module")
def quantised(exported, tmp_path_factory) -> Exported:
    return quantise_onnx(exported.folder, tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def runtime(exported):
    return load_onnx(exported.folder, threads=1)


@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize("tokens", [1, 2, 97])
@torch.no_grad()
def test_looped_experts_are_the_grouped_ones(top_k, tokens):
    generator = torch.Generator().manual_seed(top_k)
    mixture = MixtureFeedForward(
        width=16, shared_hidden=8, expert_hidden=24, experts=4, top_k=top_k, activation=torch.tanh
    ).requires_grad_(False)
    for parameter in mixture.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 4)
    x_BTD = torch.randn(2, tokens, 16, generator=generator)
    assert torch.allclose(LoopedMixture(mixture)(x_BTD), mixture(x_BTD), atol=1e-5)


@pytest.mark.parametrize("frames", FRAMES)
@torch.inference_mode()
def test_logits_are_torchs_with_and_without_cache(runtime, speech, frames):
    """A prefix at once, then token by token, against one pass over all tokens."""
    ids = [257, 72, 101, 9, 108, 200, 31]
    window = mel(frames, seed=frames)
    states_BSD = encode_mel(speech.model.model.encoder, window)
    hidden = speech.model.model.decoder(
        input_ids=torch.tensor([ids]), encoder_hidden_states=states_BSD, use_cache=False
    ).last_hidden_state
    expected_TV = speech.model.proj_out(hidden)[0]
    crossed, cache = runtime.encode(window.numpy()), runtime.empty_cache()
    made = [*runtime.logits(ids[:4], (0, 3), crossed, cache)]
    made += [runtime.logits([token], (0,), crossed, cache)[0] for token in ids[4:]]
    for logits_V, position in zip(made, (0, 3, 4, 5, 6), strict=True):
        assert np.abs(logits_V - expected_TV[position].numpy()).max() <= 1e-4


@torch.inference_mode()
def test_decoding_is_torchs(runtime, speech):
    prefix = speech.tokenizer.prefix()
    written = 0
    for seed, frames in enumerate(FRAMES):
        window = mel(frames, seed)
        states_BSD = encode_mel(speech.model.model.encoder, window)
        (expected,) = greedy(CachedDecoder(speech.model), speech, states_BSD, prefix)
        (made,) = runtime.decode_mel(window, prefix)
        assert made.ids == expected.ids
        written += len(made.ids)
        # torch's int8 vocabulary is exact for the best words only, not in the softmax's sum.
        assert made.mean_log_probability == pytest.approx(expected.mean_log_probability, abs=1e-2)
    assert written > len(FRAMES)


@torch.inference_mode()
def torch_text(speech: SpeechBase, clip: torch.Tensor) -> str:
    """The clip by torch, in the exported model's windows: short, and 30 s if doubtful."""
    text = ""
    for window_s in (clip_window_s(len(clip)), MAX_WINDOW_S):
        states_BSD = encode_mel(speech.model.model.encoder, log_mel([clip], window_s))
        prefix = speech.tokenizer.prefix()
        (decoded,) = greedy(CachedDecoder(speech.model), speech, states_BSD, prefix)
        text = "" if decoded.is_silence else speech.tokenizer.decode(decoded.ids)
        if not decoded.is_doubtful(text):
            break
    return text


def test_transcripts_are_torchs_in_the_same_windows(runtime, speech):
    generator = torch.Generator().manual_seed(0)
    swell_N = torch.linspace(-40, 0, 31 * RATE_HZ)  # dB: steady noise is no speech
    long = torch.randn(31 * RATE_HZ, generator=generator) * 0.1 * 10 ** (swell_N / 20)
    made = OnnxTranscriber(runtime).transcribe_many([torch.zeros(RATE_HZ), torch.zeros(0), long])
    texts = [torch_text(speech, long[start:end]) for start, end in cut_at_pauses(long)]
    assert [each.text for each in made] == ["", "", " ".join(text for text in texts if text)]
    assert any(texts)


@pytest.mark.parametrize("kind", ["exported", "quantised"])
def test_a_window_knows_nothing_of_its_neighbours(kind, request):
    runtime = load_onnx(request.getfixturevalue(kind).folder, threads=1)
    prefix = runtime.tokenizer.prefix()
    windows = [mel(100, seed) * (1 + 5 * seed) for seed in range(3)]
    together = runtime.decode_mel(torch.cat(windows), prefix)
    assert together == [runtime.decode_mel(window, prefix)[0] for window in windows]


def test_experts_cost_what_their_tokens_cost(exported, quantised, speech, tmp_path):
    """Four experts, top-1, against the dense block they come from: only the router is extra."""
    dense = one_encoder_layer(nano_whisper().model)
    export_encoder(dense, tmp_path / "dense.onnx")
    window = {"mel": mel(1000).numpy()}
    with torch.inference_mode():
        states = encode_mel(dense.model.encoder, mel(1000))
    expected = sum(multiply_adds(tmp_path / "dense.onnx", window).values())
    router = states.shape[1] * speech.model.config.d_model * speech.mixture.experts
    for folder in (exported.folder, quantised.folder):
        made = sum(multiply_adds(folder / "encoder.onnx", window).values())
        assert made == expected + router


def test_two_experts_a_token_cost_twice_one(tmp_path, exported):
    mixture = MixtureConfig(top_k=2)
    double = nano_base(mixture=mixture)
    one_encoder_layer(double.model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        experts = double.model.model.encoder.layers[0].fc1.experts
        experts.down_proj += torch.randn(experts.down_proj.shape, generator=generator)
    export_encoder(double.model, tmp_path / "double.onnx")
    window = mel(200)
    extra = 100 * double.model.config.d_model * 2 * experts.up_proj.shape[1]
    feeds = {"mel": window.numpy()}
    single = sum(multiply_adds(exported.folder / "encoder.onnx", feeds).values())
    assert sum(multiply_adds(tmp_path / "double.onnx", feeds).values()) == single + extra
    session = open_session(str(tmp_path / "double.onnx"), threads=1)
    (states,) = session.run(["states"], feeds)
    with torch.inference_mode():
        expected = encode_mel(double.model.model.encoder, window)
    assert np.abs(states - expected.numpy()).max() <= 1e-4


def weights(path: Path) -> dict[str, np.ndarray]:
    """Every constant of a graph with more than one dimension."""
    graph = onnx.load(str(path)).graph
    return {i.name: numpy_helper.to_array(i) for i in graph.initializer if len(i.dims) > 1}


def test_every_matrix_is_integer_and_stored_once(exported, quantised, speech):
    encoder = weights(quantised.folder / "encoder.onnx")
    left = {name for name, value in encoder.items() if value.dtype == np.float32}
    assert left == {"positions", "layers.0.feed_forward.router.weight"}
    decoder = weights(quantised.folder / "decoder.onnx")
    floats = {name for name, value in decoder.items() if value.dtype == np.float32}
    routers = {f"layers.{layer}.feed_forward.router.weight" for layer in range(2)}
    assert {name for name in floats if not name.endswith(".scales")} == {"positions", *routers}
    for part in ("ups", "downs"):
        for expert in range(speech.mixture.experts):
            name = f"layers.0.feed_forward.{part}.{expert}.weight"
            assert encoder[f"{name}_quantized"].dtype == np.int8
            assert decoder[f"{name}.blocks"].dtype == np.uint8
    rows = speech.model.config.vocab_size
    for folder in (exported.folder, quantised.folder):
        tables = [v for v in weights(folder / "decoder.onnx").values() if rows in v.shape]
        assert sum(table.size == rows * speech.model.config.d_model for table in tables) == 1


def test_products_with_weights_run_in_integers(quantised, speech):
    """What is left in float32 are attention scores, their sums, and the routers."""
    states, width = 50, speech.model.config.d_model
    counts = multiply_adds(quantised.folder / "encoder.onnx", {"mel": mel(2 * states).numpy()})
    router = states * width * speech.mixture.experts
    attention = 2 * states * states * width
    float32 = counts["MatMul"] + counts["FusedMatMul"] + counts["Gemm"]
    assert float32 == router + attention
    convolutions = 2 * states * 3 * 80 * width + states * 3 * width * width
    layer = 4 * width * width + 2 * width * (2 * width)
    crossings = speech.model.config.decoder_layers * 2 * width * width
    assert sum(counts.values()) - float32 == convolutions + states * (layer + crossings)


@torch.inference_mode()
def test_int8_is_near_float32_and_not_it(runtime, quantised):
    window = mel(334).numpy()
    integer = load_onnx(quantised.folder, threads=1)
    ids, wanted = (257, 72, 101), (0, 1, 2)
    exact, near = (
        each.logits(ids, wanted, each.encode(window), each.empty_cache())
        for each in (runtime, integer)
    )
    error = np.linalg.norm(near - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.05


@settings(max_examples=30, deadline=None)
@given(
    rows=st.integers(1, 4),
    width=st.sampled_from([16, 32, 48, 128, 384]),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 99),
)
def test_blocks_are_within_half_a_step(rows, width, scale, seed):
    weight_OI = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32) * scale
    weight_OI[0] = 0
    blocks_OKN, scale_OK = to_blocks(weight_OI.astype(np.float32))
    back_OKN = (blocks_OKN.astype(np.float32) - 128) * scale_OK[..., None]
    error_OKN = np.abs(back_OKN - weight_OI.reshape(back_OKN.shape))
    assert (error_OKN <= 0.501 * scale_OK[..., None]).all()


def test_a_float32_product_in_an_int8_graph_is_an_error(exported, tmp_path, monkeypatch):
    """ONNX Runtime's quantiser leaves what it does not know as it is, without a word."""

    def leave(source, target, **_options):
        onnx.save(onnx.load(str(source)), str(target))

    monkeypatch.setattr("model_core.export.quantise.quantize_dynamic", leave)
    with pytest.raises(ExportError, match="not quantised") as caught:
        quantise_onnx(exported.folder, tmp_path / "int8")
    assert caught.value.code == "onnx-malformed"


def test_graphs_name_no_path_of_this_machine(exported, quantised):
    for folder in (exported.folder, quantised.folder):
        for path in folder.glob("*.onnx"):
            content = path.read_bytes()
            assert b".py" not in content
            assert str(folder).encode() not in content


def damaged(exported: Exported, folder: Path) -> Path:
    return Path(shutil.copytree(exported.folder, folder / "copy"))


@pytest.mark.parametrize("name", ["encoder.onnx", "decoder.onnx.data", "tokenizer.json"])
def test_an_altered_or_missing_file_is_not_loaded(exported, tmp_path, name):
    folder = damaged(exported, tmp_path)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(ExportError) as caught:
        load_onnx(folder)
    assert caught.value.code == "onnx-checksum"
    (folder / name).unlink()
    with pytest.raises(ExportError) as caught:
        load_onnx(folder)
    assert caught.value.code == "onnx-checksum"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"format": "auricle/onnx/v9"}, "onnx-malformed"),
        ({"precision": "int3"}, "onnx-malformed"),
        ({"decoder": {"layers": 2}}, "onnx-malformed"),
        ({"decoding": None}, "onnx-malformed"),
        ({"files": {}}, "onnx-checksum"),
        ({"files": []}, "onnx-malformed"),
        ({"files": {"../copy/encoder.onnx": "0"}}, "onnx-checksum"),
    ],
)
def test_a_wrong_manifest_is_not_loaded(exported, tmp_path, change, code):
    folder = damaged(exported, tmp_path)
    manifest = json.loads((folder / "onnx.json").read_text()) | change
    (folder / "onnx.json").write_text(json.dumps(manifest))
    with pytest.raises(ExportError) as caught:
        load_onnx(folder)
    assert caught.value.code == code


def test_folders_are_neither_mixed_nor_quantised_twice(exported, quantised, speech, tmp_path):
    with pytest.raises(ExportError) as caught:
        export_onnx(speech, exported.folder)
    assert caught.value.code == "onnx-folder"
    with pytest.raises(ExportError) as caught:
        load_onnx(tmp_path)
    assert caught.value.code == "onnx-folder"
    with pytest.raises(ExportError, match="already"):
        quantise_onnx(quantised.folder, tmp_path / "again")
