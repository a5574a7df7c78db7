"""Greedy decoding in batch over `CachedDecoder`; finished rows leave the batch.

Whisper invents speech where there is none and may repeat itself without end. Against that stand a
length limit from the audio's own duration, a stop when the same phrase comes again and again, and
the signs of `guards`, which `transcribe` acts upon.

Shape suffixes: N rows, C clips, S encoder states, D width, T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from model_core.base import SpeechBase
from model_core.cached_decoder import CachedDecoder
from model_core.decode_rules import TokenRules
from model_core.features import STATES_PER_S, padding_bias
from model_core.guards import (
    LEAST_LOG_PROBABILITY,
    MOST_COMPRESSION,
    NO_SPEECH_PROBABILITY,
    compression_ratio,
    runs_away,
    without_repetition,
)
from model_core.term_bias import TermBias

MAX_NEW_TOKENS = 220
_TOKENS_PER_S = 16  # above the fastest speech, whose rare words take several tokens each
_TOKENS_SPARE = 8
_LEAVE_BELOW = 0.75  # copying the caches pays once a quarter of the rows are done


@dataclass(frozen=True)
class Decoded:
    """What was decoded for one clip.

    Attributes:
        ids: text tokens and times, without prefix and end.
        log_probabilities: of each of `ids`.
        mean_log_probability: per written token, the end included.
        no_speech_probability: 0 where the model has no such token.
        complete: the model ended the text itself: no limit was met and no repetition was cut.
    """

    ids: tuple[int, ...]
    log_probabilities: tuple[float, ...]
    mean_log_probability: float
    no_speech_probability: float
    complete: bool

    @property
    def is_silence(self) -> bool:
        """Whisper's own rule: probably no speech, and unsure of the text."""
        return (
            self.no_speech_probability > NO_SPEECH_PROBABILITY
            and self.mean_log_probability < LEAST_LOG_PROBABILITY
        )

    def is_doubtful(self, text: str) -> bool:
        """Whether any guard fires on this decoding, whose text is `text`."""
        return (
            not self.complete
            or self.mean_log_probability < LEAST_LOG_PROBABILITY
            or compression_ratio(text) > MOST_COMPRESSION
        )


@dataclass
class Row:
    """One clip's text while it is being written."""

    limit: int
    ids: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    no_speech: float = 0.0
    is_open: bool = True

    def write(self, token: int, log_probability: float, end: int) -> None:
        """Append a token; the row closes at the end, at its limit and when it runs away."""
        self.ids.append(token)
        self.log_probabilities.append(log_probability)
        self.is_open = token != end and len(self.ids) < self.limit and not runs_away(self.ids)

    def decoded(self, end: int) -> Decoded:
        """The finished row."""
        ended = bool(self.ids) and self.ids[-1] == end
        ids = without_repetition(self.ids[:-1] if ended else list(self.ids))
        return Decoded(
            ids=tuple(ids),
            log_probabilities=tuple(self.log_probabilities[: len(ids)]),
            mean_log_probability=sum(self.log_probabilities) / max(len(self.ids), 1),
            no_speech_probability=self.no_speech,
            complete=ended and len(ids) == len(self.ids) - 1,
        )


def token_limit(states: int) -> int:
    """Most tokens to write for a window of so many encoder states: what can be said in it."""
    return min(MAX_NEW_TOKENS, _TOKENS_SPARE + _TOKENS_PER_S * states // STATES_PER_S)


@torch.inference_mode()
def greedy(
    decoder: CachedDecoder,
    base: SpeechBase,
    states_CSD: Tensor,
    prefix: Sequence[int],
    lengths: Sequence[int] | None = None,
    *,
    bias_CS: Tensor | None = None,
    timestamps: bool = False,
    temperature: float = 0.0,
    boost: TermBias | None = None,
) -> list[Decoded]:
    """Decode encoder states [C, S, D] float32, of which each clip has `lengths` real ones.

    `bias_CS` is added to the scores of each state; without it, states beyond a clip's own are
    padding. `prefix` is the control tokens, after a prompt if there is one; it ends in
    no-timestamps unless `timestamps` are wanted. A clip's result does not depend on the others.
    Above a `temperature` of 0 tokens are drawn at random, with probabilities ∝ p^(1/temperature).
    `boost` makes its terms likelier.
    """
    lengths = [states_CSD.shape[1]] * len(states_CSD) if lengths is None else lengths
    if bias_CS is None:
        bias_CS = padding_bias(lengths, states_CSD.shape[1])
    room = decoder.max_positions - len(prefix)
    limits = [min(token_limit(n), room) for n in lengths]
    rules = TokenRules(base, decoder.vocabulary.size, timestamps=timestamps)
    cache = decoder.start(states_CSD, len(prefix) + max(limits), bias_CS)
    rows = [Row(limit) for limit in limits]
    hidden_NTD = decoder.step(torch.tensor([list(prefix)] * len(rows)), cache)
    for row, no_speech in zip(rows, no_speech_of(decoder, base, hidden_NTD, prefix), strict=True):
        row.no_speech = no_speech
    held, bias_V = rows, rules.first_bias_V
    while True:
        logits_NV = decoder.vocabulary.logits(hidden_NTD[:, -1], bias_V)
        rules.apply_times(logits_NV, [row.ids for row in held])
        likelier_NV = logits_NV
        if boost is not None:
            likelier_NV = boost.apply(logits_NV, [row.ids for row in held])
        next_N = _choose(likelier_NV, temperature)
        _write(logits_NV, next_N, held, base.tokenizer.end)
        places = [place for place, row in enumerate(held) if row.is_open]
        if not places:
            break
        if len(places) <= _LEAVE_BELOW * len(held):
            kept_N = torch.tensor(places)
            cache.keep(kept_N, kept_N)
            held, next_N = [held[place] for place in places], next_N[kept_N]
        hidden_NTD, bias_V = decoder.step(next_N[:, None], cache), rules.bias_V
    return [row.decoded(base.tokenizer.end) for row in rows]


def _write(logits_NV: Tensor, next_N: Tensor, rows: Sequence[Row], end: int) -> None:
    """Give every open row its next token, with the model's own log-probability of it."""
    log_p_N = logits_NV.gather(1, next_N[:, None])[:, 0] - logits_NV.logsumexp(-1)
    for row, token, log_p in zip(rows, next_N.tolist(), log_p_N.tolist(), strict=True):
        if row.is_open:
            row.write(token, log_p, end)


def _choose(logits_NV: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return logits_NV.argmax(-1)
    return torch.multinomial((logits_NV / temperature).softmax(-1), 1)[:, 0]


def no_speech_of(
    decoder: CachedDecoder, base: SpeechBase, hidden_NTD: Tensor, prefix: Sequence[int]
) -> list[float]:
    """Probability of the no-speech token right after the start token, for each row."""
    if base.tokenizer.no_speech is None:
        return [0.0] * len(hidden_NTD)
    start = list(prefix).index(base.tokenizer.start)
    logits_NV = decoder.vocabulary.logits(hidden_NTD[:, start])
    log_p_N = logits_NV[:, base.tokenizer.no_speech] - logits_NV.logsumexp(-1)
    return [float(p) for p in log_p_N.exp()]
