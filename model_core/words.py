"""When each word was said: cross-attention aligned by dynamic time warping, as OpenAI's Whisper.

The text is fed to the decoder once more, and the attention of a few heads from tokens to encoder
states is taken as a cost to be walked through monotonically (whisper/timing.py; Giorgino 2009 for
the algorithm). The heads are those named by the checkpoint; where it names none, all heads of the
upper half of the layers.

Shape suffixes: A alignment heads, T tokens, S encoder states (20 ms), H heads.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from model_core.base import SpeechBase
from model_core.cached_decoder import CachedDecoder
from model_core.decode import Decoded
from model_core.features import STATES_PER_S
from model_core.tokens import SpeechTokenizer

_MEDIAN_STATES = 7
_UNDECODED = "\ufffd"
_UNSPACED_SCRIPTS = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "MYANMAR", "KHMER")


@dataclass(frozen=True)
class Word:
    """One word of a transcript.

    Attributes:
        start_s, end_s: seconds from the start of the recording.
        text: the word with its punctuation, without spaces around it.
        confidence: the geometric mean of its tokens' probabilities, in [0, 1].
        ids: its tokens.
    """

    start_s: float
    end_s: float
    text: str
    confidence: float
    ids: tuple[int, ...] = ()


@torch.inference_mode()
def align(
    decoder: CachedDecoder,
    base: SpeechBase,
    states_SD: Tensor,
    prefix: Sequence[int],
    decoded: Decoded,
    *,
    duration_s: float,
) -> tuple[Word, ...]:
    """Words of one decoded clip of `duration_s`, whose encoder states are [S, D]."""
    text = [token for token in decoded.ids if token < base.tokenizer.end]
    if not text:
        return ()
    probabilities = [
        log_p
        for token, log_p in zip(decoded.ids, decoded.log_probabilities, strict=True)
        if token < base.tokenizer.end
    ]
    fed = [*prefix, *text]
    cache = decoder.start(states_SD[None], len(fed))
    attention: list[Tensor] = []
    decoder.step(torch.tensor([fed]), cache, attention)
    heads = base.rules.alignment_heads or upper_half(decoder.layers, decoder.heads)
    said = min(max(math.ceil(duration_s * STATES_PER_S), 1), len(states_SD))
    weights_ATS = torch.stack([attention[layer][0, head] for layer, head in heads])
    # The attention that foretells a token is that of the position before it.
    costs_TS = -_smooth(weights_ATS[:, len(prefix) - 1 :, :said]).mean(0)
    starts = [state / STATES_PER_S for state in token_starts(costs_TS.numpy())]
    words, first = [], 0
    for word, tokens in split_words(base.tokenizer, text):
        end = first + tokens
        confidence = math.exp(sum(probabilities[first:end]) / tokens)
        span_s = starts[first], min(starts[end], duration_s)
        words.append(Word(*span_s, word, confidence, tuple(text[first:end])))
        first = end
    return tuple(words)


def upper_half(layers: int, heads: int) -> tuple[tuple[int, int], ...]:
    """(layer, head) of every head in the upper half of the layers."""
    return tuple((layer, head) for layer in range(layers // 2, layers) for head in range(heads))


def _smooth(weights_ATS: Tensor) -> Tensor:
    """Attention standardised over the tokens, then the median of seven neighbouring states."""
    std, mean = torch.std_mean(weights_ATS, dim=-2, keepdim=True, correction=0)
    normed_ATS = (weights_ATS - mean) / std.clamp(min=torch.finfo(std.dtype).eps)
    side = _MEDIAN_STATES // 2
    if normed_ATS.shape[-1] <= side:
        return normed_ATS
    padded_ATS = functional.pad(normed_ATS, (side, side), mode="reflect")
    return padded_ATS.unfold(-1, _MEDIAN_STATES, 1).median(-1).values


def token_starts(cost_TS: np.ndarray) -> list[int]:
    """State at which each token (row) begins on the cheapest monotonic path; T integers.

    Steps go one token on, one state on, or both. The table is filled by anti-diagonals, whose
    cells do not depend on each other, so the loop is over T + S and not T · S.
    """
    tokens, states = cost_TS.shape
    total = np.full((tokens + 1, states + 1), np.inf)
    total[0, 0] = 0.0
    step = np.zeros((tokens + 1, states + 1), dtype=np.int8)
    for diagonal in range(2, tokens + states + 1):
        i = np.arange(max(1, diagonal - states), min(tokens, diagonal - 1) + 1)
        j = diagonal - i
        # Whisper's order of preference at equal cost: state on, then token on, then both.
        ways = np.stack([total[i, j - 1], total[i - 1, j], total[i - 1, j - 1]])
        best = ways.argmin(0)
        total[i, j] = cost_TS[i - 1, j - 1] + ways[best, np.arange(len(i))]
        step[i, j] = best
    starts = [0] * tokens
    token, state = tokens, states
    while token > 0:
        starts[token - 1] = state - 1
        way = step[token, state]
        token, state = token - (way != 0), state - (way != 1)
    return starts


def split_words(tokenizer: SpeechTokenizer, ids: Sequence[int]) -> list[tuple[str, int]]:
    """Words of a text and how many tokens each has; the counts sum to the number of ids.

    A word begins at a space, or, where a language writes none, is as much as decodes to whole
    characters. Punctuation belongs to the word that it touches, or else to the one before.
    """
    words: list[tuple[str, int]] = []
    start = 0
    for end in range(1, len(ids) + 1):
        piece = tokenizer.decode_exactly(ids[start:end])
        if _UNDECODED in piece and end < len(ids):
            continue
        after_space = bool(words) and not words[-1][0].strip()
        is_new = piece.startswith(" ") or (_stands_alone(piece) and not after_space)
        if words and not is_new:
            text, count = words[-1]
            words[-1] = (text + piece, count + end - start)
        else:
            words.append((piece, end - start))
        start = end
    return _with_marks_joined(words)


def _with_marks_joined(words: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    joined: list[tuple[str, int]] = []
    for text, count in words:
        if joined and not any(character.isalnum() for character in text):
            before, so_far = joined[-1]
            joined[-1] = (before + text, so_far + count)
        else:
            joined.append((text, count))
    return [(text.strip(), count) for text, count in joined]


def _stands_alone(piece: str) -> bool:
    """Whether a piece is of a script that puts no spaces between words."""
    return any(unicodedata.name(character, "").startswith(_UNSPACED_SCRIPTS) for character in piece)
