"""Whisper written for export: plain tensors in and out, no cache objects, experts in a static loop.

Grouped matrix products have no ONNX operator, and a product over all experts with the unchosen
ones masked would cost E times the work. Here every expert takes its own tokens with
nonzero → index_select, and one scatter puts all outputs back: operators whose cost at run time
follows the number of tokens that chose the expert. An expert that no token chose multiplies an
empty matrix; a branch around it would only hide it from the exporter.

Weights are stored transposed, so that each projection becomes one MatMul with a constant right
side: the form that ONNX Runtime's quantisers and kernels take.

Shape suffixes: B batch, M mel bins, T mel frames or token positions, P cached positions,
S encoder states, D width, H heads, K head width, J positions whose logits are wanted,
V vocabulary, N tokens (B·T), E experts, C choices per token, R rows of one expert.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import WhisperForConditionalGeneration
from transformers.models.whisper.modeling_whisper import (
    WhisperAttention,
    WhisperDecoderLayer,
    WhisperEncoderLayer,
)

from model_core.experts import MixtureFeedForward


class Linear(nn.Module):
    """x @ weight + bias, with the weight as [in, out]."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Buffer(weight_OI.detach().t().contiguous())
        self.bias = None if bias_O is None else nn.Buffer(bias_O.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        product = x @ self.weight
        return product if self.bias is None else product + self.bias


def _linear(layer: nn.Linear) -> Linear:
    return Linear(layer.weight, layer.bias)


class Convolution(nn.Module):
    """A convolution of width 3 and padding 1 over time, as one product over unfolded frames.

    Quantisers make an integer product of it, where a Conv would stay in floating point.
    """

    def __init__(self, layer: nn.Conv1d) -> None:
        super().__init__()
        self.stride = layer.stride[0]
        weight_OKI = layer.weight.transpose(1, 2)
        self.linear = Linear(weight_OKI.flatten(1), layer.bias)

    def forward(self, x_BTI: Tensor) -> Tensor:
        """[B, T, in] → [B, T / stride, out]."""
        padded = functional.pad(x_BTI, (0, 0, 1, 1))
        last = x_BTI.shape[1]
        frames = [padded[:, offset : last + offset : self.stride] for offset in range(3)]
        return cast(Tensor, self.linear(torch.cat(frames, dim=-1)))


class LoopedMixture(nn.Module):
    """`MixtureFeedForward` for export: the same function, each expert on its own tokens only."""

    def __init__(self, mixture: MixtureFeedForward) -> None:
        super().__init__()
        stacked = mixture.experts
        self.top_k = mixture.top_k
        # One expert a token, or experts that make up a dense block together, weigh 1 each.
        self.weighted = mixture.weighting == "mean" and mixture.top_k > 1
        self.shared = mixture.shared_up.out_features > 0
        self.activation = mixture.activation
        self.shared_up, self.shared_down = map(_linear, (mixture.shared_up, mixture.shared_down))
        self.router = Linear(mixture.router.weight)
        ups = zip(stacked.up_proj, stacked.up_proj_bias, strict=True)
        self.ups = nn.ModuleList(Linear(weight, bias) for weight, bias in ups)
        self.downs = nn.ModuleList(Linear(weight) for weight in stacked.down_proj)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the block to every position."""
        x_ND = x_BTD.reshape(-1, x_BTD.shape[-1])
        y_ND = self._routed(x_ND)
        if self.shared:
            y_ND = y_ND + self.shared_down(self.activation(self.shared_up(x_ND)))
        else:
            y_ND = y_ND + cast(Tensor, self.shared_down.bias)
        return y_ND.view_as(x_BTD)

    def _routed(self, x_ND: Tensor) -> Tensor:
        p_NC, expert_NC = self.router(x_ND).softmax(-1).topk(self.top_k, dim=-1)
        weight_NC = p_NC / p_NC.sum(-1, keepdim=True)
        rows, outputs = [], []
        for expert, (up, down) in enumerate(zip(self.ups, self.downs, strict=True)):
            token_R, choice_R = (expert_NC == expert).nonzero().unbind(-1)
            y_RD = down(self.activation(up(x_ND.index_select(0, token_R))))
            if self.weighted:
                slot_R = token_R * self.top_k + choice_R
                y_RD = y_RD * weight_NC.flatten().index_select(0, slot_R)[:, None]
            rows.append(token_R)
            outputs.append(y_RD)
        return torch.zeros_like(x_ND).index_put(
            (torch.cat(rows),), torch.cat(outputs), accumulate=self.top_k > 1
        )


class DenseFeedForward(nn.Module):
    """An ordinary feed-forward block, for models that are not upcycled."""

    def __init__(self, layer: WhisperEncoderLayer | WhisperDecoderLayer) -> None:
        super().__init__()
        self.up, self.down = _linear(layer.fc1), _linear(layer.fc2)
        self.activation = layer.activation_fn

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Apply the block to every position."""
        return cast(Tensor, self.down(self.activation(self.up(x_BTD))))


def _feed_forward(layer: WhisperEncoderLayer | WhisperDecoderLayer) -> nn.Module:
    if isinstance(layer.fc1, MixtureFeedForward):
        return LoopedMixture(layer.fc1)
    return DenseFeedForward(layer)


class Attention(nn.Module):
    """Multi-head attention in pieces, so that keys and values may come from a cache."""

    def __init__(self, attention: WhisperAttention) -> None:
        super().__init__()
        self.heads, self.head_width = attention.num_heads, attention.head_dim
        self.key, self.value, self.out = map(
            _linear, (attention.k_proj, attention.v_proj, attention.out_proj)
        )
        self.query = Linear(
            attention.q_proj.weight * attention.scaling, attention.q_proj.bias * attention.scaling
        )

    def keys(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → [B, H, K, T]: transposed, as the scores need it."""
        return self._split(self.key(x_BTD)).permute(0, 2, 3, 1)

    def values(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D] → [B, H, T, K]."""
        return self._split(self.value(x_BTD)).transpose(1, 2)

    def forward(
        self, x_BTD: Tensor, key_BHKS: Tensor, value_BHSK: Tensor, mask_TS: Tensor | None = None
    ) -> Tensor:
        """Attend from x to keys and values; `mask_TS` is added to the scores."""
        query_BHTK = self._split(self.query(x_BTD)).transpose(1, 2)
        score_BHTS = query_BHTK @ key_BHKS
        if mask_TS is not None:
            score_BHTS = score_BHTS + mask_TS
        mixed_BHTK = score_BHTS.softmax(-1) @ value_BHSK
        return cast(Tensor, self.out(mixed_BHTK.transpose(1, 2).flatten(2)))

    def _split(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.view(*x_BTD.shape[:2], self.heads, self.head_width)


class EncoderLayer(nn.Module):
    """One layer of the encoder."""

    def __init__(self, layer: WhisperEncoderLayer) -> None:
        super().__init__()
        self.attention = Attention(layer.self_attn)
        self.attention_norm, self.final_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.feed_forward = _feed_forward(layer)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """[B, S, D] → [B, S, D]."""
        y_BSD = self.attention_norm(x_BSD)
        keys, values = self.attention.keys(y_BSD), self.attention.values(y_BSD)
        x_BSD = x_BSD + self.attention(y_BSD, keys, values)
        return cast(Tensor, x_BSD + self.feed_forward(self.final_norm(x_BSD)))


class ExportEncoder(nn.Module):
    """Log-mel to encoder states, and to the keys and values of every cross-attention.

    Those depend on the recording alone: computed here once, not at every decoder step.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        encoder, decoder = model.model.encoder, model.model.decoder
        self.conv1, self.conv2 = Convolution(encoder.conv1), Convolution(encoder.conv2)
        self.positions = nn.Buffer(encoder.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList(EncoderLayer(layer) for layer in encoder.layers)
        self.norm = encoder.layer_norm
        self.crossings = nn.ModuleList(Attention(layer.encoder_attn) for layer in decoder.layers)

    def forward(self, mel_BMT: Tensor) -> tuple[Tensor, ...]:
        """[B, M, T] → states [B, S, D], then for each layer keys [B, H, K, S], values [B, H, S, K].

        T must be even; S = T / 2.
        """
        x_BTD = functional.gelu(self.conv1(mel_BMT.transpose(1, 2)))
        x_BSD = functional.gelu(self.conv2(x_BTD))
        x_BSD = x_BSD + self.positions[: x_BSD.shape[1]]
        for layer in self.layers:
            x_BSD = layer(x_BSD)
        states_BSD: Tensor = self.norm(x_BSD)
        crossed = [
            tensor
            for crossing in cast(list[Attention], list(self.crossings))
            for tensor in (crossing.keys(states_BSD), crossing.values(states_BSD))
        ]
        return (states_BSD, *crossed)


class DecoderLayer(nn.Module):
    """One layer of the decoder, on cached keys and values."""

    def __init__(self, layer: WhisperDecoderLayer) -> None:
        super().__init__()
        self.attention = Attention(layer.self_attn)
        self.crossing = Attention(layer.encoder_attn)
        self.attention_norm, self.final_norm = layer.self_attn_layer_norm, layer.final_layer_norm
        self.crossing_norm = layer.encoder_attn_layer_norm
        self.feed_forward = _feed_forward(layer)

    def forward(
        self,
        x_BTD: Tensor,
        past: tuple[Tensor, Tensor],
        crossed: tuple[Tensor, Tensor],
        mask_TS: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """[B, T, D] → [B, T, D], and the keys and values with this step's appended."""
        y_BTD = self.attention_norm(x_BTD)
        keys = torch.cat([past[0], self.attention.keys(y_BTD)], dim=3)
        values = torch.cat([past[1], self.attention.values(y_BTD)], dim=2)
        x_BTD = x_BTD + self.attention(y_BTD, keys, values, mask_TS)
        x_BTD = x_BTD + self.crossing(self.crossing_norm(x_BTD), *crossed)
        return x_BTD + self.feed_forward(self.final_norm(x_BTD)), keys, values


class ExportDecoder(nn.Module):
    """Token ids and a cache to logits and the longer cache.

    One graph serves the prefix (P = 0) and every step (T = 1), so weights are stored once. The
    token embedding is also the output projection, one tensor for both.
    """

    def __init__(self, model: WhisperForConditionalGeneration) -> None:
        super().__init__()
        decoder = model.model.decoder
        self.embedding = nn.Buffer(decoder.embed_tokens.weight.detach().clone())
        self.positions = nn.Buffer(decoder.embed_positions.weight.detach().clone())
        self.layers = nn.ModuleList(DecoderLayer(layer) for layer in decoder.layers)
        self.norm = decoder.layer_norm

    def forward(
        self,
        ids_BT: Tensor,
        wanted_J: Tensor,
        pasts: list[tuple[Tensor, Tensor]],
        crossed: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, ...]:
        """Logits [B, J, V] at positions `wanted_J` of this call, then each layer's longer cache.

        `pasts` are keys [B, H, K, P] and values [B, H, P, K] of the positions before.
        """
        steps, past = ids_BT.shape[1], pasts[0][0].shape[3]
        query_T = torch.arange(steps, device=ids_BT.device) + past
        key_S = torch.arange(steps + past, device=ids_BT.device)
        mask_TS = torch.where(key_S[None] <= query_T[:, None], 0.0, -torch.inf)
        x_BTD = functional.embedding(ids_BT, self.embedding)
        x_BTD = x_BTD + self.positions.index_select(0, query_T)
        cache: list[Tensor] = []
        for layer, own, cross in zip(self.layers, pasts, crossed, strict=True):
            x_BTD, keys, values = layer(x_BTD, own, cross, mask_TS)
            cache += [keys, values]
        hidden_BJD = self.norm(x_BTD.index_select(1, wanted_J))
        return (hidden_BJD @ self.embedding.t(), *cache)
