"""Whisper's decoder for inference: weights laid out once, key-value caches allocated once.

transformers' decoder serves training and `generate`; step by step it spends most of its time
between products. Here each step is a few products per layer: queries, keys and values in one,
cross-attention keys and values of all layers in one and only once per clip, self-attention keys
and values written in place, and for few tokens the weights of the chosen experts alone.
Half of a float32 step is the vocabulary (51,864 x 384 in tiny.en), so its matrix is kept in int8
and only screens: the best candidates are scored again in float32 (`Vocabulary`).

Rows never meet: no quantity is taken over the batch, and padded encoder states are masked.

Shape suffixes: N rows, C clips (N = C·W with W beams a clip), T new positions, P cached positions,
S encoder states, D width, H heads, K head width, L layers, V vocabulary, E experts.
"""

# Fields carry shape suffixes like every other tensor name.
# ruff: noqa: N815
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import WhisperAttention, WhisperDecoderLayer

from model_core.experts import MixtureFeedForward
from model_core.int8 import Int8Linear, Int8Mixture, Vocabulary

Precision = Literal["float32", "int8"]
Linear = Callable[[Tensor], Tensor]


@dataclass
class DecoderCache:
    """Keys and values of one batch, and how far it has come.

    Attributes:
        self_LNHPK: keys and values of the text so far, allocated for all positions at the start.
        cross_LCHSK: keys and values of the clips' encoder states.
        mask_C11S: what is added to the scores of encoder states; None for nothing.
        length: positions filled.
    """

    self_LNHPK: tuple[Tensor, Tensor]
    cross_LCHSK: tuple[Tensor, Tensor]
    mask_C11S: Tensor | None
    length: int = 0

    def keep(self, rows_N: Tensor, clips_C: Tensor | None = None) -> None:
        """Go on with these rows, in this order; rows may repeat (beams). Clips likewise."""
        keys, values = self.self_LNHPK
        self.self_LNHPK = keys.index_select(1, rows_N), values.index_select(1, rows_N)
        if clips_C is None:
            return
        keys, values = self.cross_LCHSK
        self.cross_LCHSK = keys.index_select(1, clips_C), values.index_select(1, clips_C)
        if self.mask_C11S is not None:
            self.mask_C11S = self.mask_C11S.index_select(0, clips_C)


class CachedDecoder:
    """The decoder of a Whisper, dense or with experts, ready to step.

    Reads the model's weights at construction, so an adapter must be merged before. Attention
    weights are copied into their fused layout (a tenth of tiny.en); the rest is shared. Nothing is
    written after construction, so threads may share it.
    """

    def __init__(
        self, model: WhisperForConditionalGeneration, precision: Precision = "float32"
    ) -> None:
        decoder = model.model.decoder
        self._tokens_VD: Tensor = decoder.embed_tokens.weight
        self._positions_PD: Tensor = decoder.embed_positions.weight
        self._layers = [_Layer(layer, precision) for layer in decoder.layers]
        self._norm: nn.LayerNorm = decoder.layer_norm
        self._heads: int = model.config.decoder_attention_heads
        self._cross_weight, self._cross_bias = _cross_projection(decoder.layers)
        self.max_positions: int = self._positions_PD.shape[0]
        self.vocabulary = Vocabulary(self._tokens_VD)

    @property
    def layers(self) -> int:
        """Layers of the decoder."""
        return len(self._layers)

    @property
    def heads(self) -> int:
        """Attention heads of a layer."""
        return self._heads

    def start(
        self, states_CSD: Tensor, positions: int, bias_CS: Tensor | None = None, beams: int = 1
    ) -> DecoderCache:
        """Cache for clips of these encoder states, with room for `positions` tokens a row.

        `bias_CS` is added to the scores of each state: 0, -inf for padding, the logarithm of how
        many states one stands for; None means 0.
        """
        clips, states, width = states_CSD.shape
        projected = functional.linear(states_CSD, self._cross_weight, self._cross_bias)
        both_2LCHSK = projected.view(
            clips, states, 2, self.layers, self._heads, width // self._heads
        ).permute(2, 3, 0, 4, 1, 5)
        shape = (self.layers, clips * beams, self._heads, positions, width // self._heads)
        mask_C11S = None
        if bias_CS is not None and bool(bias_CS.any()):
            mask_C11S = bias_CS[:, None, None]
        return DecoderCache(
            (states_CSD.new_empty(shape), states_CSD.new_empty(shape)),
            (both_2LCHSK[0].contiguous(), both_2LCHSK[1].contiguous()),
            mask_C11S,
        )

    def step(
        self, ids_NT: Tensor, cache: DecoderCache, attention: list[Tensor] | None = None
    ) -> Tensor:
        """Feed T more tokens a row; returns their hidden states [N, T, D], for the vocabulary.

        Several tokens at once are only taken first, into an empty cache. With `attention` given,
        each layer's cross-attention weights [C, H, W·T, S] are appended to it. Raises ValueError
        where more tokens come than the cache has room for.
        """
        end = cache.length + ids_NT.shape[1]
        if end > cache.self_LNHPK[0].shape[3] or (cache.length and ids_NT.shape[1] > 1):
            raise ValueError(f"no room for {ids_NT.shape[1]} tokens after {cache.length}")
        x_NTD = functional.embedding(ids_NT, self._tokens_VD)
        x_NTD = x_NTD + self._positions_PD[cache.length : end]
        for index, layer in enumerate(self._layers):
            x_NTD = layer(x_NTD, index, cache, attention)
        cache.length = end
        return cast(Tensor, self._norm(x_NTD))


class _FeedForward(Protocol):
    def __call__(self, x_ND: Tensor) -> Tensor: ...


class _Layer:
    """One decoder layer over cached keys and values."""

    def __init__(self, layer: WhisperDecoderLayer, precision: Precision) -> None:
        own, cross = layer.self_attn, layer.encoder_attn
        self._heads = int(own.num_heads)
        scale = float(own.head_dim) ** -0.5
        make = Int8Linear if precision == "int8" else _FloatLinear
        self._own_norm, self._cross_norm, self._final_norm = (
            _Norm(norm)
            for norm in (
                layer.self_attn_layer_norm,
                layer.encoder_attn_layer_norm,
                layer.final_layer_norm,
            )
        )
        self._qkv = make(*_fused_qkv(own, scale))
        self._own_out = make(own.out_proj.weight, own.out_proj.bias)
        self._query = make(cross.q_proj.weight * scale, cross.q_proj.bias * scale)
        self._cross_out = make(cross.out_proj.weight, cross.out_proj.bias)
        self._feed_forward = _feed_forward(layer, precision)

    def __call__(
        self, x_NTD: Tensor, index: int, cache: DecoderCache, attention: list[Tensor] | None
    ) -> Tensor:
        x_NTD = x_NTD + self._own_attention(self._own_norm(x_NTD), index, cache)
        x_NTD = x_NTD + self._cross_attention(self._cross_norm(x_NTD), index, cache, attention)
        normed_ND = self._final_norm(x_NTD).view(-1, x_NTD.shape[-1])
        return x_NTD + self._feed_forward(normed_ND).view_as(x_NTD)

    def _own_attention(self, x_NTD: Tensor, index: int, cache: DecoderCache) -> Tensor:
        rows, new, width = x_NTD.shape
        qkv_NT3HK = self._qkv(x_NTD).view(rows, new, 3, self._heads, width // self._heads)
        q_NHTK, k_NHTK, v_NHTK = qkv_NT3HK.permute(2, 0, 3, 1, 4).unbind()
        end = cache.length + new
        keys_NHPK, values_NHPK = (stored[index, :, :, :end] for stored in cache.self_LNHPK)
        keys_NHPK[:, :, cache.length :] = k_NHTK
        values_NHPK[:, :, cache.length :] = v_NHTK
        y_NHTK = functional.scaled_dot_product_attention(
            q_NHTK, keys_NHPK, values_NHPK, is_causal=new > 1, scale=1.0
        )
        return self._own_out(y_NHTK.transpose(1, 2).reshape(rows, new, width))

    def _cross_attention(
        self, x_NTD: Tensor, index: int, cache: DecoderCache, attention: list[Tensor] | None
    ) -> Tensor:
        width = x_NTD.shape[-1]
        keys_CHSK, values_CHSK = (stored[index] for stored in cache.cross_LCHSK)
        # The beams of a clip ask the same keys: they stand side by side as further queries.
        q_CQHK = self._query(x_NTD).view(len(keys_CHSK), -1, self._heads, width // self._heads)
        q_CHQK = q_CQHK.transpose(1, 2)
        if attention is not None:
            scores_CHQS = q_CHQK @ keys_CHSK.transpose(-2, -1)
            if cache.mask_C11S is not None:
                scores_CHQS = scores_CHQS + cache.mask_C11S
            attention.append(scores_CHQS.softmax(-1))
        y_CHQK = functional.scaled_dot_product_attention(
            q_CHQK, keys_CHSK, values_CHSK, attn_mask=cache.mask_C11S, scale=1.0
        )
        return self._cross_out(y_CHQK.transpose(1, 2).reshape(x_NTD.shape))


class _FloatLinear:
    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        self._weight_OI, self._bias_O = weight_OI, bias_O

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self._weight_OI, self._bias_O)


class _Norm:
    def __init__(self, norm: nn.LayerNorm) -> None:
        self._arguments = (norm.normalized_shape, norm.weight, norm.bias, norm.eps)

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, *self._arguments)


class _Mixture:
    """A mixture of experts that, for one token, reads only the experts of its choice."""

    def __init__(self, mixture: MixtureFeedForward) -> None:
        self._mixture = mixture

    def __call__(self, x_ND: Tensor) -> Tensor:
        mixture, experts = self._mixture, self._mixture.experts
        if len(x_ND) > 1 or mixture.top_k > 1:
            return cast(Tensor, mixture(x_ND))
        expert = int(mixture.router(x_ND).argmax())
        up_1F = torch.addmm(experts.up_proj_bias[expert], x_ND, experts.up_proj[expert].t())
        hidden_1F = mixture.activation(up_1F)
        shared_1D = mixture.shared_down(mixture.activation(mixture.shared_up(x_ND)))
        return torch.addmm(shared_1D, hidden_1F, experts.down_proj[expert].t())


def _feed_forward(layer: WhisperDecoderLayer, precision: Precision) -> _FeedForward:
    if isinstance(layer.fc1, MixtureFeedForward):
        return Int8Mixture(layer.fc1) if precision == "int8" else _Mixture(layer.fc1)
    make = Int8Linear if precision == "int8" else _FloatLinear
    fc1, fc2 = cast(nn.Linear, layer.fc1), cast(nn.Linear, layer.fc2)
    up, down = make(fc1.weight, fc1.bias), make(fc2.weight, fc2.bias)
    activation = cast(Linear, layer.activation_fn)
    return lambda x_ND: down(activation(up(x_ND)))


def _fused_qkv(attention: WhisperAttention, scale: float) -> tuple[Tensor, Tensor]:
    """Queries (scaled), keys and values as one projection; Whisper's keys have no bias."""
    q, k, v = (cast(nn.Linear, getattr(attention, f"{name}_proj")) for name in "qkv")
    weight_OI = torch.cat([q.weight * scale, k.weight, v.weight])
    return weight_OI, torch.cat([q.bias * scale, torch.zeros_like(q.bias), v.bias])


def _cross_projection(layers: Iterable[WhisperDecoderLayer]) -> tuple[Tensor, Tensor]:
    """Keys of all layers, then values of all layers, as one projection."""
    attentions = [layer.encoder_attn for layer in layers]
    keys = [a.k_proj.weight for a in attentions]
    values = [a.v_proj.weight for a in attentions]
    biases = [a.v_proj.bias for a in attentions]
    nothing = [torch.zeros_like(bias) for bias in biases]
    return torch.cat([*keys, *values]), torch.cat([*nothing, *biases])
