"""Recordings that nobody spoke, for the gradient probes: small, and the same for the same seed.

Shape suffixes: S encoder states, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from model_core.base import SpeechBase
from model_core.training import Example

_STATES = 8
_TOKENS = 3  # of which the last is the target
INVENTED_VOCABULARY = 2048


def invent_rows(base: SpeechBase, seed: int, rows: int) -> list[tuple[Tensor, Example]]:
    """`rows` pairs of random encoder states [S, D] float16 and a random transcript.

    Its words have ids below `INVENTED_VOCABULARY`, so that they can be scored against those alone.
    """
    generator = torch.Generator().manual_seed(seed)
    config = base.model.config
    prefix = base.tokenizer.prefix()
    words_in_all = min(base.tokenizer.end, INVENTED_VOCABULARY)
    pairs = []
    for _ in range(rows):
        states_SD = torch.randn(_STATES, config.d_model, generator=generator).half()
        words = torch.randint(0, words_in_all, (_TOKENS,), generator=generator).tolist()
        ids = (*prefix, *words)
        pairs.append((states_SD, Example(ids, (0.0,) * (len(ids) - 1) + (1.0,))))
    return pairs
