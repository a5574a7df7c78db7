"""Encode what was said; know the silence after it beforehand.

Whisper was trained on 30 s windows whose end is silence. Cut that off and tiny.en no longer finds
the end: at the clip + 3 s it repeats itself on 74 of 236 real clips. But silence is the same for
every clip of one level, so its part of each layer is computed once: the clip's own states attend to
themselves and to the remembered keys and values of the silence up to 30 s, and so does the decoder.
Neighbouring states of silence are nearly equal: of each eight the middle one stands for all, its
score raised by log 8, which is what eight equal keys add up to in the softmax. What is left out is
the effect of the speech on the silence after it.

Shape suffixes: B batch, M mel bins, T mel frames, S encoder states of the clips, Z remembered
states of silence, X = S + Z, D width, H heads, K head width.
"""

# Fields carry shape suffixes like every other tensor name.
# ruff: noqa: N815
from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.whisper.modeling_whisper import WhisperEncoder, WhisperEncoderLayer

from model_core.features import (
    FRAMES_PER_S,
    FRAMES_PER_STATE,
    MAX_WINDOW_S,
    STATES_PER_S,
    encoder_stem,
    padding_bias,
)

_STATES_PER_REMEMBERED = 8
_LEVEL_STEP = 0.2  # of the normalised log-mel, 8 dB: the silence of the nearest level is taken
_ALL_STATES = int(MAX_WINDOW_S) * STATES_PER_S


@dataclass(frozen=True)
class _Silence:
    """30 s of silence at one level: each layer's keys and values [H, Z, K], and its last states."""

    keys_values: tuple[tuple[Tensor, Tensor], ...]
    states_ZD: Tensor


class TailedEncoder:
    """A Whisper encoder that adds the silence after each clip. Threads may share it."""

    def __init__(self, encoder: WhisperEncoder) -> None:
        """Silence is encoded at the first clip of its level, and remembered."""
        self._encoder = encoder
        self._silences: dict[int, _Silence] = {}
        self._lock = threading.Lock()
        cells_Z = torch.arange(_STATES_PER_REMEMBERED, _ALL_STATES + 1, _STATES_PER_REMEMBERED)
        self._cell_end_Z = cells_Z

    def __call__(self, mel_BMT: Tensor, frames_B: Sequence[int]) -> tuple[Tensor, Tensor]:
        """States [B, X, D] of the windows and of silence, and what to add to a score of each.

        The second, [B, X], is 0 for a window's own states, -inf for padding and for silence where
        the window still is, and the logarithm of how many states a remembered one stands for.
        """
        lengths = [frames // FRAMES_PER_STATE for frames in frames_B]
        silences = [
            self._silence(float(mel_MT[:, :frames].min()))
            for mel_MT, frames in zip(mel_BMT, frames_B, strict=True)
        ]
        x_BSD = encoder_stem(self._encoder, mel_BMT, frames_B)
        after_BZ = (self._cell_end_Z - torch.tensor(lengths)[:, None]).clamp(
            0, _STATES_PER_REMEMBERED
        )
        bias_BX = torch.cat([padding_bias(lengths, x_BSD.shape[1]), after_BZ.log()], 1)
        for index, layer in enumerate(self._encoder.layers):
            keys_values = [silence.keys_values[index] for silence in silences]
            tail = tuple(torch.stack(each) for each in zip(*keys_values, strict=True))
            x_BSD = _layer(layer, x_BSD, tail, bias_BX[:, None, None])
        states_BSD = self._encoder.layer_norm(x_BSD)
        states_BZD = torch.stack([silence.states_ZD for silence in silences])
        return torch.cat([states_BSD, states_BZD], 1), bias_BX

    def _silence(self, least: float) -> _Silence:
        level = round(least / _LEVEL_STEP)
        with self._lock:
            if level not in self._silences:
                self._silences[level] = _encode_silence(self._encoder, level * _LEVEL_STEP)
            return self._silences[level]


def _encode_silence(encoder: WhisperEncoder, least: float) -> _Silence:
    frames = int(MAX_WINDOW_S) * FRAMES_PER_S
    mel_1MT = torch.full((1, encoder.config.num_mel_bins, frames), least)
    x_1SD = encoder_stem(encoder, mel_1MT)
    middle = slice(_STATES_PER_REMEMBERED // 2, None, _STATES_PER_REMEMBERED)
    cells = _ALL_STATES // _STATES_PER_REMEMBERED
    keys_values = []
    for layer in encoder.layers:
        k_1HSK, v_1HSK = _keys_values(layer, layer.self_attn_layer_norm(x_1SD))
        keys_values.append((k_1HSK[0, :, middle][:, :cells], v_1HSK[0, :, middle][:, :cells]))
        x_1SD = _layer(layer, x_1SD, None, None)
    return _Silence(tuple(keys_values), encoder.layer_norm(x_1SD)[0, middle][:cells])


def _heads(layer: WhisperEncoderLayer, x_BSD: Tensor) -> Tensor:
    rows, states, width = x_BSD.shape
    heads = int(layer.self_attn.num_heads)
    return x_BSD.view(rows, states, heads, width // heads).transpose(1, 2)


def _keys_values(layer: WhisperEncoderLayer, normed_BSD: Tensor) -> tuple[Tensor, Tensor]:
    attention = layer.self_attn
    keys = _heads(layer, attention.k_proj(normed_BSD))
    return keys, _heads(layer, attention.v_proj(normed_BSD))


def _layer(
    layer: WhisperEncoderLayer,
    x_BSD: Tensor,
    tail: tuple[Tensor, ...] | None,
    bias_B11X: Tensor | None,
) -> Tensor:
    """Whisper's encoder layer whose queries also see the tail's keys and values [B, H, Z, K]."""
    attention = layer.self_attn
    normed_BSD = layer.self_attn_layer_norm(x_BSD)
    keys, values = _keys_values(layer, normed_BSD)
    if tail is not None:
        keys, values = torch.cat([keys, tail[0]], 2), torch.cat([values, tail[1]], 2)
    y_BHSK = functional.scaled_dot_product_attention(
        _heads(layer, attention.q_proj(normed_BSD)),
        keys,
        values,
        attn_mask=bias_B11X,
    )
    x_BSD = x_BSD + attention.out_proj(y_BHSK.transpose(1, 2).flatten(2))
    normed_BSD = layer.final_layer_norm(x_BSD)
    fed = layer.fc2(layer.activation_fn(layer.fc1(normed_BSD)))
    return cast(Tensor, x_BSD + fed)
