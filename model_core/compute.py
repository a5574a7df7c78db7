"""How many floating point operations a transcription takes, part by part, by exact formula.

Counted as `torch.utils.flop_counter` counts: two per multiplication of a matrix product, a
convolution or an attention product; biases, norms, activations and softmax are left out. A test
compares the formula with that counter on the running model. What a mixture does not run is not
counted, what its router costs is.

Shape suffixes: D width, S encoder states, T tokens.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import WhisperForConditionalGeneration

from model_core.experts import MixtureFeedForward

_KERNEL = 3  # of both convolutions of Whisper's encoder
_FRAMES_PER_STATE = 2


@dataclass(frozen=True)
class TranscriptionFlops:
    """FLOPs of one clip.

    Attributes:
        convolutions: mel frames to encoder states.
        encoder_attention: projections and products of self-attention.
        encoder_feed_forward: dense blocks, or routers, shared parts and chosen experts.
        cross_cache: the decoder's keys and values of the encoder states, once a clip.
        decoder_attention: self- and cross-attention of every token.
        decoder_feed_forward: as in the encoder.
        logits: width to vocabulary.
    """

    convolutions: int
    encoder_attention: int
    encoder_feed_forward: int
    cross_cache: int
    decoder_attention: int
    decoder_feed_forward: int
    logits: int

    @property
    def total(self) -> int:
        """All parts together."""
        return sum(astuple(self))

    @property
    def feed_forward(self) -> int:
        """What sparse feed-forward blocks could save at the very most."""
        return self.encoder_feed_forward + self.decoder_feed_forward


def transcription_flops(
    model: WhisperForConditionalGeneration,
    states: int,
    prefix: int,
    tokens: int,
    remembered: int = 0,
) -> TranscriptionFlops:
    """FLOPs of encoding a window of `states` and greedily writing `tokens`, the end included.

    `remembered` states of silence (`silent_tail`) are attended to and never encoded.

    The prefix in one step, with logits for all its positions, then one token a step from the
    key-value cache, as transformers runs it. `decode.greedy` makes logits for two positions of the
    prefix only, which is less than a hundredth of the whole.
    """
    config = model.config
    width, encoder, decoder = config.d_model, model.model.encoder, model.model.decoder
    square = 2 * width * width
    steps = tokens - 1
    positions = prefix + steps
    # Query-key pairs: the prefix against itself (masked pairs are computed too), then each token
    # against all before it and itself.
    pairs = prefix * prefix + sum(prefix + step for step in range(1, steps + 1))
    layers, heard = len(decoder.layers), states + remembered
    return TranscriptionFlops(
        convolutions=2 * _KERNEL * width * states
        * (_FRAMES_PER_STATE * config.num_mel_bins + width),
        encoder_attention=len(encoder.layers) * (4 * square * states + 4 * width * states * heard),
        encoder_feed_forward=states * _feed_forward(encoder.layers),
        cross_cache=layers * 2 * square * heard,
        decoder_attention=layers
        * (6 * square * positions + 4 * width * (pairs + positions * heard)),
        decoder_feed_forward=positions * _feed_forward(decoder.layers),
        logits=2 * width * config.vocab_size * positions,
    )  # fmt: skip


def feed_forward_flops(layer: nn.Module) -> int:
    """FLOPs of one position in a layer's feed-forward block, dense or a mixture."""
    block: Any = layer.fc1
    if not isinstance(block, MixtureFeedForward):
        return 4 * int(block.in_features) * int(block.out_features)
    experts, hidden, width = block.experts.up_proj.shape
    active = block.shared_up.out_features + block.top_k * hidden
    return 2 * width * experts + 4 * width * active


def active_share(layer: nn.Module) -> float:
    """Hidden units that one position runs ÷ hidden units of the layer's block; 1 if dense."""
    block: Any = layer.fc1
    if not isinstance(block, MixtureFeedForward):
        return 1.0
    experts, hidden, _ = block.experts.up_proj.shape
    shared = int(block.shared_up.out_features)
    return float((shared + block.top_k * hidden) / (shared + experts * hidden))


def flop_counter() -> FlopCounterMode:
    """torch's counter, taught the two products of this model on CPU that it does not know."""
    grouped = torch.ops.aten._grouped_mm
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(
        display=False, custom_mapping={grouped: _grouped_mm_flops, attention: _attention_flops}
    )


def _feed_forward(layers: nn.ModuleList) -> int:
    return sum(feed_forward_flops(layer) for layer in layers)


def _grouped_mm_flops(x_SI: Any, weight_EIO: Any, *_: Any, **__: Any) -> int:
    rows, inner = x_SI
    return int(2 * rows * inner * weight_EIO[-1])


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    batch, heads, queries, width = query
    return int(2 * batch * heads * queries * key[2] * (width + value[3]))
