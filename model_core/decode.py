"""Greedy decoding in batch, with a key-value cache and guards against made-up text.

Whisper invents speech where there is none and may repeat itself without end. Three guards: the
no-speech rule of its paper (Radford et al. 2022, section 4.5), a length limit from the audio's own
duration, and a stop when the same phrase comes again and again.

Shape suffixes: B batch, S encoder states, D width, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from model_core.base import SpeechBase
from model_core.features import STATES_PER_S

MAX_NEW_TOKENS = 220
_TOKENS_PER_S = 16  # above the fastest speech, whose rare words take several tokens each
_TOKENS_SPARE = 8
_NO_SPEECH_PROBABILITY = 0.6
_NO_SPEECH_LOG_PROBABILITY = -1.0
_LONGEST_PHRASE = 12
_REPEATS = 4


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one clip.

    Attributes:
        ids: text tokens, without prefix and end.
        mean_log_probability: per written token, the end included.
        no_speech_probability: 0 where the model has no such token.
    """

    ids: tuple[int, ...]
    mean_log_probability: float
    no_speech_probability: float

    @property
    def is_silence(self) -> bool:
        """Whisper's own rule: probably no speech, and unsure of the text."""
        return (
            self.no_speech_probability > _NO_SPEECH_PROBABILITY
            and self.mean_log_probability < _NO_SPEECH_LOG_PROBABILITY
        )


@torch.inference_mode()
def greedy(
    model: WhisperForConditionalGeneration,
    base: SpeechBase,
    states_BSD: Tensor,
    prefix: Sequence[int],
) -> list[Decoded]:
    """Decode encoder states of equal windows. Rows do not influence each other.

    `model` is the base's model or an adapter merged into it; `prefix` is the control tokens, after
    a prompt if there is one. The caller's states must be float32.
    """
    batch, states = states_BSD.shape[:2]
    limit = token_limit(states)
    banned_V = _banned(base, model.config.vocab_size)
    first_banned_V = banned_V.clone()
    first_banned_V[list(base.rules.begin_suppress)] = True
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    rows: list[list[int]] = [[] for _ in range(batch)]
    score_B = torch.zeros(batch)
    open_B = torch.ones(batch, dtype=torch.bool)
    no_speech_B = torch.zeros(batch)
    ids_BT = torch.tensor([list(prefix)]).expand(batch, -1)
    for step in range(limit):
        logits_BTV = _logits(model, ids_BT, states_BSD, cache, last_only=step > 0)
        if step == 0:
            no_speech_B = _no_speech(base, logits_BTV, prefix)
        logits_BV = logits_BTV[:, -1].masked_fill(banned_V if step else first_banned_V, -torch.inf)
        log_p_B, next_B = logits_BV.log_softmax(-1).max(-1)
        score_B += torch.where(open_B, log_p_B, 0.0)
        for row in open_B.nonzero().flatten().tolist():
            rows[row].append(int(next_B[row]))
            open_B[row] = rows[row][-1] != base.tokenizer.end and not runs_away(rows[row])
        if not open_B.any():
            break
        ids_BT = next_B[:, None]
    return [
        _decoded(row, base.tokenizer.end, float(score), float(no_speech))
        for row, score, no_speech in zip(rows, score_B, no_speech_B, strict=True)
    ]


def token_limit(states: int) -> int:
    """Most tokens to write for a window of so many encoder states: what can be said in it."""
    return min(MAX_NEW_TOKENS, _TOKENS_SPARE + _TOKENS_PER_S * states // STATES_PER_S)


def _decoded(row: list[int], end: int, log_probability: float, no_speech: float) -> Decoded:
    ids = without_repetition([token for token in row if token != end])
    return Decoded(tuple(ids), log_probability / len(row), no_speech)


def _logits(
    model: WhisperForConditionalGeneration,
    ids_BT: Tensor,
    states_BSD: Tensor,
    cache: EncoderDecoderCache,
    *,
    last_only: bool,
) -> Tensor:
    hidden_BTD = model.model.decoder(
        input_ids=ids_BT,
        encoder_hidden_states=states_BSD,
        past_key_values=cache,
        use_cache=True,
    ).last_hidden_state
    logits_BTV: Tensor = model.proj_out(hidden_BTD[:, -1:] if last_only else hidden_BTD)
    return logits_BTV


def _banned(base: SpeechBase, vocabulary: int) -> Tensor:
    banned_V = torch.zeros(vocabulary, dtype=torch.bool)
    banned_V[list(base.rules.suppress)] = True
    banned_V[base.tokenizer.no_timestamps :] = True
    return banned_V


def _no_speech(base: SpeechBase, logits_BTV: Tensor, prefix: Sequence[int]) -> Tensor:
    if base.tokenizer.no_speech is None:
        return torch.zeros(len(logits_BTV))
    start = list(prefix).index(base.tokenizer.start)
    return logits_BTV[:, start].softmax(-1)[:, base.tokenizer.no_speech]


def _repeated_phrase(ids: Sequence[int]) -> int:
    """Length of a phrase that the ids end in `_REPEATS` times over; 0 if there is none.

    One token may come twice as often: digits are dictated ("zero zero zero zero").
    """
    for length in range(1, _LONGEST_PHRASE + 1):
        repeats = 2 * _REPEATS if length == 1 else _REPEATS
        tail = ids[-length * repeats :]
        if len(tail) == length * repeats and list(tail) == list(tail[:length]) * repeats:
            return length
    return 0


def runs_away(ids: Sequence[int]) -> bool:
    """Whether the ids end in the same phrase again and again."""
    return _repeated_phrase(ids) > 0


def without_repetition(ids: list[int]) -> list[int]:
    """Cut a runaway repetition down to its phrase said once."""
    length = _repeated_phrase(ids)
    if not length:
        return ids
    phrase = ids[-length:]
    while ids[-2 * length :] == phrase * 2:
        ids = ids[:-length]
    return ids
