"""CTranslate2's Whisper variables to transformers' configuration and state dict.

CTranslate2 fuses projections: self-attention's query, key and value in `linear_0` (their bias is
zero in the key part, since Whisper's keys have none), cross-attention's key and value in
`linear_1`. Sizes are read off the tensors, so any Whisper size converts.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers import WhisperConfig

from model_core.ctranslate2_reader import CTranslate2Model, read_ctranslate2
from model_core.errors import WeightsError

_ENGLISH_VOCABULARY = 51864
_FIRST_ENGLISH_END, _FIRST_MULTILINGUAL_END = 50256, 50257
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def convert_ctranslate2(paths: Sequence[Path]) -> tuple[WhisperConfig, dict[str, Tensor]]:
    """Configuration and float32 state dict (without the tied output projection) of a model.bin.

    `paths` are the file, or the parts that it was cut into.

    Raises WeightsError (weights-malformed) for anything but a Whisper in floating point.
    """
    model = read_ctranslate2(*paths)
    if model.specification != "WhisperSpec":
        raise WeightsError(
            f"the CTranslate2 model is a {model.specification}, not a Whisper",
            remedy="give a CTranslate2 folder of a Whisper model",
        )
    source = _Variables(model)
    config = _config(source)
    state: dict[str, Tensor] = {}
    for name in ("conv1", "conv2"):
        state |= source.linear(f"encoder/{name}", f"model.encoder.{name}")
    state["model.encoder.embed_positions.weight"] = source["encoder/position_encodings/encodings"]
    state["model.decoder.embed_positions.weight"] = source["decoder/position_encodings/encodings"]
    state["model.decoder.embed_tokens.weight"] = source["decoder/embeddings/weight"]
    for side, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        state |= source.norm(f"{side}/layer_norm", f"model.{side}.layer_norm")
        for index in range(layers):
            state |= _layer(source, side, index)
    return config, state


class _Variables:
    def __init__(self, model: CTranslate2Model) -> None:
        self._variables = model.variables

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._variables.get(name)
        if tensor is None:
            raise WeightsError(
                f"the CTranslate2 model has no {name}",
                remedy="give a CTranslate2 folder of a Whisper model",
            )
        if tensor.dtype not in _FLOATS:
            raise WeightsError(
                f"{name} is quantised ({tensor.dtype}); a base needs exact weights",
                remedy="convert the original with --quantization float16 or float32",
            )
        return tensor.float()

    def scalar(self, name: str) -> int:
        return int(self._variables[name])

    def count(self, side: str) -> int:
        layers = {
            name.split("/")[1] for name in self._variables if name.startswith(f"{side}/layer_")
        }
        return len(layers - {"layer_norm"})

    def linear(self, source: str, target: str) -> dict[str, Tensor]:
        return {
            f"{target}.weight": self[f"{source}/weight"],
            f"{target}.bias": self[f"{source}/bias"],
        }

    def norm(self, source: str, target: str) -> dict[str, Tensor]:
        return {
            f"{target}.weight": self[f"{source}/gamma"],
            f"{target}.bias": self[f"{source}/beta"],
        }

    def fused(self, source: str, target: str, names: tuple[str, ...]) -> dict[str, Tensor]:
        weights = self[f"{source}/weight"].chunk(len(names))
        biases = self[f"{source}/bias"].chunk(len(names))
        state: dict[str, Tensor] = {}
        for name, weight, bias in zip(names, weights, biases, strict=True):
            state[f"{target}.{name}.weight"] = weight.clone()
            if name != "k_proj":
                state[f"{target}.{name}.bias"] = bias.clone()
            elif bias.any():
                raise WeightsError(
                    f"{source} has a bias on its keys, which Whisper has not",
                    remedy="give a CTranslate2 folder of a Whisper model",
                )
        return state


def _config(source: _Variables) -> WhisperConfig:
    vocabulary, width = source["decoder/embeddings/weight"].shape
    end = _FIRST_ENGLISH_END if vocabulary == _ENGLISH_VOCABULARY else _FIRST_MULTILINGUAL_END
    return WhisperConfig(
        vocab_size=vocabulary,
        num_mel_bins=source["encoder/conv1/weight"].shape[1],
        d_model=width,
        encoder_layers=source.count("encoder"),
        decoder_layers=source.count("decoder"),
        encoder_attention_heads=source.scalar("encoder/num_heads"),
        decoder_attention_heads=source.scalar("decoder/num_heads"),
        encoder_ffn_dim=source["encoder/layer_0/ffn/linear_0/weight"].shape[0],
        decoder_ffn_dim=source["decoder/layer_0/ffn/linear_0/weight"].shape[0],
        max_source_positions=source["encoder/position_encodings/encodings"].shape[0],
        max_target_positions=source["decoder/position_encodings/encodings"].shape[0],
        bos_token_id=end,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end + 1,
    )


def _layer(source: _Variables, side: str, index: int) -> dict[str, Tensor]:
    old, new = f"{side}/layer_{index}", f"model.{side}.layers.{index}"
    state = {
        **source.fused(
            f"{old}/self_attention/linear_0", f"{new}.self_attn", ("q_proj", "k_proj", "v_proj")
        ),
        **source.linear(f"{old}/self_attention/linear_1", f"{new}.self_attn.out_proj"),
        **source.norm(f"{old}/self_attention/layer_norm", f"{new}.self_attn_layer_norm"),
        **source.linear(f"{old}/ffn/linear_0", f"{new}.fc1"),
        **source.linear(f"{old}/ffn/linear_1", f"{new}.fc2"),
        **source.norm(f"{old}/ffn/layer_norm", f"{new}.final_layer_norm"),
    }
    if side == "encoder":
        return state
    return state | {
        **source.linear(f"{old}/attention/linear_0", f"{new}.encoder_attn.q_proj"),
        **source.fused(f"{old}/attention/linear_1", f"{new}.encoder_attn", ("k_proj", "v_proj")),
        **source.linear(f"{old}/attention/linear_2", f"{new}.encoder_attn.out_proj"),
        **source.norm(f"{old}/attention/layer_norm", f"{new}.encoder_attn_layer_norm"),
    }
