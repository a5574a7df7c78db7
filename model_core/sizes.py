"""Named model sizes, and what each costs: parameters, arithmetic per second of audio, memory.

Counts are closed formulas of the architecture, so they hold for models that this machine could not
load; tests compare every one with a count of real modules and of real arithmetic. One multiply and
add are 2 FLOPs; only matrix products and convolutions count, as everywhere (normalisation,
activation and softmax are below one per cent). Decoding is counted with a key-value cache.

Shape letters in formulas: D width, F dense hidden units, M mel bins, T mel frames, S encoder states
(T ÷ 2), N text tokens, P parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from transformers import WhisperConfig

from model_core.errors import WeightsError
from model_core.features import STATES_PER_S
from model_core.upcycle import MixtureConfig

_ENGLISH_END, _MULTILINGUAL_END = 50256, 50257
_ENGLISH_VOCABULARY = 51864
_STATES, _TEXT_POSITIONS = 1500, 448
_KERNEL = 3
_HIDDEN_RATIO = 4
_PREFIX_TOKENS = 4

WINDOW_S = 10.0
TOKENS_PER_S = 4.0
"""Text tokens per second of audio in the tables: fast speech in English (docs/model.md)."""


@dataclass(frozen=True)
class Size:
    """A Whisper architecture.

    Attributes:
        width: D.
        layers: of the encoder and of the decoder.
        heads: of every attention.
        vocabulary: text and control tokens.
        mel_bins: M.
        hidden: F, units of a dense feed-forward block.
    """

    width: int
    layers: tuple[int, int]
    heads: int
    vocabulary: int
    mel_bins: int = 80
    hidden: int = 0

    def __post_init__(self) -> None:
        """Four times the width unless said otherwise."""
        if not self.hidden:
            object.__setattr__(self, "hidden", _HIDDEN_RATIO * self.width)

    def whisper_config(self) -> WhisperConfig:
        """The configuration that transformers builds it from."""
        english = self.vocabulary <= _ENGLISH_VOCABULARY
        end = min(_ENGLISH_END if english else _MULTILINGUAL_END, self.vocabulary - _PREFIX_TOKENS)
        return WhisperConfig(
            vocab_size=self.vocabulary,
            num_mel_bins=self.mel_bins,
            d_model=self.width,
            encoder_layers=self.layers[0],
            decoder_layers=self.layers[1],
            encoder_attention_heads=self.heads,
            decoder_attention_heads=self.heads,
            encoder_ffn_dim=self.hidden,
            decoder_ffn_dim=self.hidden,
            max_source_positions=_STATES,
            max_target_positions=_TEXT_POSITIONS,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            decoder_start_token_id=end + 1,
        )


SIZES: Mapping[str, Size] = MappingProxyType(
    {
        "nano": Size(32, (2, 2), 2, 260, hidden=64),
        "tiny.en": Size(384, (4, 4), 6, 51864),
        "tiny": Size(384, (4, 4), 6, 51865),
        "base": Size(512, (6, 6), 8, 51865),
        "small": Size(768, (12, 12), 12, 51865),
        "medium": Size(1024, (24, 24), 16, 51865),
        "large-v3": Size(1280, (32, 32), 20, 51866, mel_bins=128),
        "7b": Size(2048, (32, 32), 32, 51866, mel_bins=128),
    }
)
"""OpenAI's sizes by their names; `nano` is random and for tests; `7b` is a shape without weights,
named by its parameters as an upcycled-shared mixture of four experts."""


def size_named(name: str) -> Size:
    """The size of that name. Raises WeightsError for an unknown one."""
    found = SIZES.get(name)
    if found is None:
        raise WeightsError(f"there is no size {name!r}", remedy=f"choose one of {', '.join(SIZES)}")
    return found


@dataclass(frozen=True)
class Costs:
    """What a size costs, dense or as a mixture.

    Attributes:
        parameters: all that are stored; the output projection is the token embeddings.
        active_parameters: those that one token's computation may use.
        encoder_flops: of one window.
        decoder_flops: of the text of one window, prefix included.
        flops_per_s: both, per second of audio.
        weights_bytes: in float32.
        cache_bytes: keys and values of one window at its last token, in float32.
    """

    parameters: int
    active_parameters: int
    encoder_flops: int
    decoder_flops: int
    flops_per_s: float
    weights_bytes: int
    cache_bytes: int


def costs(
    size: Size,
    mixture: MixtureConfig | None = None,
    *,
    window_s: float = WINDOW_S,
    tokens: int | None = None,
) -> Costs:
    """Costs of a window full of speech, in a dense model (None) or a mixture.

    `tokens` are the decoder's inputs, by default four of prefix and `TOKENS_PER_S`.
    """
    if tokens is None:
        tokens = _PREFIX_TOKENS + round(window_s * TOKENS_PER_S)
    states = int(window_s * STATES_PER_S)
    block = _block(size, mixture)
    in_decoder = _block(size, None if mixture is None else mixture.in_decoder())
    parameters = _parameters(size, block.parameters, in_decoder.parameters)
    encoder_flops = _encoder_flops(size, block, states)
    decoder_flops = _decoder_flops(size, in_decoder, states, tokens)
    return Costs(
        parameters=parameters,
        active_parameters=_parameters(size, block.active_parameters, in_decoder.active_parameters),
        encoder_flops=encoder_flops,
        decoder_flops=decoder_flops,
        flops_per_s=(encoder_flops + decoder_flops) / window_s,
        weights_bytes=4 * parameters,
        cache_bytes=4 * 2 * size.width * size.layers[1] * (states + tokens),
    )


@dataclass(frozen=True)
class _Block:
    """A feed-forward block: its parameters, and its FLOPs for one token."""

    parameters: int
    active_parameters: int
    flops: int


def _block(size: Size, mixture: MixtureConfig | None) -> _Block:
    width, hidden = size.width, size.hidden
    if mixture is None:
        dense = 2 * width * hidden + hidden + width
        return _Block(dense, dense, 4 * width * hidden)
    shared, each = mixture.sizes(hidden)
    always = 2 * width * shared + shared + width + width * mixture.experts
    expert = 2 * width * each + each  # the output bias is in the shared part
    units = shared + mixture.top_k * each
    return _Block(
        parameters=always + mixture.experts * expert,
        active_parameters=always + mixture.top_k * expert,
        flops=4 * width * units + 2 * width * mixture.experts,
    )


def _parameters(size: Size, block: int, in_decoder: int) -> int:
    width = size.width
    norm, attention = 2 * width, 4 * width * width + 3 * width  # keys have no bias
    convolutions = _KERNEL * width * (size.mel_bins + width) + 2 * width
    encoder = size.layers[0] * (attention + 2 * norm + block) + norm
    decoder = size.layers[1] * (2 * attention + 3 * norm + in_decoder) + norm
    embeddings = width * (_STATES + _TEXT_POSITIONS + size.vocabulary)
    return convolutions + encoder + decoder + embeddings


def _encoder_flops(size: Size, block: _Block, states: int) -> int:
    width = size.width
    convolutions = 2 * _KERNEL * width * (2 * states * size.mel_bins + states * width)
    layer = states * (8 * width * width + 4 * states * width + block.flops)
    return convolutions + size.layers[0] * layer


def _decoder_flops(size: Size, block: _Block, states: int, tokens: int) -> int:
    width = size.width
    cross_cache = 4 * states * width * width
    projections = tokens * 12 * width * width  # self: four; cross: query and output
    scores = 4 * width * (tokens * (tokens + 1) // 2 + tokens * states)
    layer = cross_cache + projections + scores + tokens * block.flops
    return size.layers[1] * layer + tokens * 2 * width * size.vocabulary
