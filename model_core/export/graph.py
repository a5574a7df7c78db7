"""Export to two ONNX graphs with dynamic axes: `encoder.onnx` and `decoder.onnx`.

encoder: mel [B, M, T] → states [B, S, D] and, per decoder layer l, cross_key_l [B, H, K, S] and
cross_value_l [B, H, S, K]. decoder: ids [B, T], wanted [J], past_key_l [B, H, K, P], past_value_l
[B, H, P, K] and the cross tensors → logits [B, J, V], cache_key_l and cache_value_l (P + T long).
B, T, S, P and J are dynamic; the prefix runs with P = 0 and each step with T = 1.

Letters as in `model_core.export.modules`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim
from transformers import WhisperConfig, WhisperForConditionalGeneration

from model_core.export.modules import ExportDecoder, ExportEncoder

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 20  # the first with Gelu as one operator
_BATCH, _FRAMES, _STEPS, _PAST = 2, 100, 3, 5  # sizes to trace with; all different, none 0 or 1


def cross_names(layers: int) -> list[str]:
    """Names of the cross-attention's keys and values, layer by layer."""
    return _names("cross", layers)


def past_names(layers: int) -> list[str]:
    """Names of the decoder's cache as it goes in."""
    return _names("past", layers)


def cache_names(layers: int) -> list[str]:
    """Names of the decoder's cache as it comes out."""
    return _names("cache", layers)


def export_encoder(model: WhisperForConditionalGeneration, path: Path) -> None:
    """Write the encoder's graph in float32, with its weights in a file beside it."""
    config = model.config
    _export(
        ExportEncoder(model).eval(),
        path,
        example=(torch.zeros(_BATCH, config.num_mel_bins, _FRAMES),),
        axes={"mel_BMT": _dynamic(0, 2)},
        inputs=["mel"],
        outputs=["states", *cross_names(config.decoder_layers)],
    )


def export_decoder(model: WhisperForConditionalGeneration, path: Path) -> None:
    """Write the decoder's graph in float32, with its weights in a file beside it."""
    config = model.config
    layers = config.decoder_layers
    axes = [(_dynamic(0, 3), _dynamic(0, 2))] * layers
    _export(
        ExportDecoder(model).eval(),
        path,
        example=(
            torch.zeros(_BATCH, _STEPS, dtype=torch.int64),
            torch.tensor([0, _STEPS - 1]),
            _pairs(config, _PAST),
            _pairs(config, _FRAMES // 2),
        ),
        axes={"ids_BT": _dynamic(0, 1), "wanted_J": _dynamic(0), "pasts": axes, "crossed": axes},
        inputs=["ids", "wanted", *past_names(layers), *cross_names(layers)],
        outputs=["logits", *cache_names(layers)],
    )


def _pairs(config: WhisperConfig, positions: int) -> list[tuple[Tensor, Tensor]]:
    """Example keys and values of every layer."""
    heads, width = config.decoder_attention_heads, config.d_model // config.decoder_attention_heads
    return [
        (torch.zeros(_BATCH, heads, width, positions), torch.zeros(_BATCH, heads, positions, width))
        for _ in range(config.decoder_layers)
    ]


def _names(kind: str, layers: int) -> list[str]:
    return [f"{kind}_{part}_{layer}" for layer in range(layers) for part in ("key", "value")]


def _dynamic(*axes: int) -> dict[int, Any]:
    return dict.fromkeys(axes, Dim.DYNAMIC)


def _export(
    module: nn.Module,
    path: Path,
    *,
    example: tuple[Tensor | list[tuple[Tensor, Tensor]], ...],
    axes: dict[str, Any],
    inputs: Sequence[str],
    outputs: Sequence[str],
) -> None:
    with warnings.catch_warnings():
        # torch 2.13 copies its own tree specifications in a way that it deprecates.
        warnings.filterwarnings("ignore", "`isinstance\\(treespec", FutureWarning)
        program = torch.onnx.export(
            module,
            example,
            dynamic_shapes=axes,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    for node in program.model.graph.all_nodes():
        # The exporter notes where each operator came from, with paths of this machine.
        node.metadata_props.clear()
        node.doc_string = None
    program.save(str(path), external_data=True)
