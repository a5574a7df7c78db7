"""Which tokens may be written next: suppressed ones never, times by Whisper's rules.

The rules of times are those of OpenAI's `ApplyTimestampRules` (whisper/decoding.py): times come in
pairs but for the last, never go back, the first is at most one second, and a time is written
wherever all times together are likelier than any one word.

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.base import SpeechBase

_LATEST_FIRST = 50  # one second


class TokenRules:
    """The rules of one decoding.

    Attributes:
        bias_V: 0 for what may ever be written, -inf for the rest.
        first_bias_V: the same for the first token.
    """

    def __init__(self, base: SpeechBase, vocabulary: int, *, timestamps: bool = False) -> None:
        self._end = base.tokenizer.end
        self._zero = base.tokenizer.no_timestamps + 1
        self.timestamps = timestamps
        banned_V = torch.zeros(vocabulary, dtype=torch.bool)
        banned_V[list(base.rules.suppress)] = True
        banned_V[base.tokenizer.no_timestamps] = True
        if not timestamps:
            banned_V[self._zero :] = True
        first_banned_V = banned_V.clone()
        first_banned_V[list(base.rules.begin_suppress)] = True
        if timestamps:
            first_banned_V[: self._zero] = True
            first_banned_V[self._zero + _LATEST_FIRST + 1 :] = True
        self.bias_V = torch.zeros(vocabulary).masked_fill(banned_V, -torch.inf)
        self.first_bias_V = torch.zeros(vocabulary).masked_fill(first_banned_V, -torch.inf)

    def apply_times(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> None:
        """Ban, in place, what the rules of times forbid after each row's tokens."""
        if not self.timestamps:
            return
        for logits_V, ids in zip(logits_NV, written, strict=True):
            self._apply_pairs(logits_V, ids)
            times = logits_V[self._zero :].logsumexp(-1)
            if times > logits_V[: self._zero].max():
                logits_V[: self._zero] = -torch.inf

    def _apply_pairs(self, logits_V: Tensor, ids: Sequence[int]) -> None:
        last_is_time = bool(ids) and ids[-1] >= self._zero
        if last_is_time:
            closed = len(ids) < 2 or ids[-2] >= self._zero
            if closed:
                logits_V[self._zero :] = -torch.inf
            else:
                logits_V[: self._end] = -torch.inf
        times = [token for token in ids if token >= self._zero]
        if times:
            # A closing time may open the next piece; a piece is longer than nothing.
            opens = last_is_time and len(ids) >= 2 and ids[-2] < self._zero
            logits_V[self._zero : times[-1] + (0 if opens else 1)] = -torch.inf
