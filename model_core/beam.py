"""Beam search over `CachedDecoder`, one clip at a time.

The beams of a clip share its cross-attention keys; only their own text's keys are copied as beams
fork. The search ends when as many texts have ended as there are beams (Radford et al. 2022, section
4.5; patience 1), and the text of the best mean log-probability per token wins.

Shape suffixes: S encoder states, D width, W beams, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from model_core.base import SpeechBase
from model_core.cached_decoder import CachedDecoder
from model_core.decode import Decoded, Row, no_speech_of, token_limit
from model_core.decode_rules import TokenRules
from model_core.guards import runs_away


@torch.inference_mode()
def beam_search(
    decoder: CachedDecoder,
    base: SpeechBase,
    states_SD: Tensor,
    prefix: Sequence[int],
    beams: int,
    *,
    length: int | None = None,
    bias_S: Tensor | None = None,
    timestamps: bool = False,
) -> Decoded:
    """Decode one clip's encoder states [S, D] with `beams` ≥ 1 texts side by side.

    `length` of the states are the clip's own (None: all); `bias_S` is added to their scores.
    """
    end = base.tokenizer.end
    limit = min(token_limit(length or len(states_SD)), decoder.max_positions - len(prefix))
    rules = TokenRules(base, decoder.vocabulary.size, timestamps=timestamps)
    bias_1S = None if bias_S is None else bias_S[None]
    cache = decoder.start(states_SD[None], len(prefix) + limit, bias_1S, beams)
    hidden_WTD = decoder.step(torch.tensor([list(prefix)] * beams), cache)
    first = Row(limit, no_speech=no_speech_of(decoder, base, hidden_WTD[:1], prefix)[0])
    rows, bias_V = [first], rules.first_bias_V
    ended: list[Row] = []
    while rows and len(ended) < beams:
        logits_WV = decoder.vocabulary.logits(hidden_WTD[: len(rows), -1], bias_V)
        rules.apply_times(logits_WV, [row.ids for row in rows])
        forks = _forks(rows, logits_WV.log_softmax(-1), 2 * beams)
        ended += [row for _, row in forks if row.ids[-1] == end]
        going = [(parent, row) for parent, row in forks if row.ids[-1] != end][:beams]
        stuck = [row for _, row in going if _is_stuck(row)]
        going = [(parent, row) for parent, row in going if not _is_stuck(row)]
        rows, bias_V = [row for _, row in going], rules.bias_V
        if not rows:
            ended = ended or stuck
        elif len(ended) < beams:
            cache.keep(torch.tensor([parent for parent, _ in going]))
            hidden_WTD = decoder.step(torch.tensor([[row.ids[-1]] for row in rows]), cache)
    return max(ended, key=_score).decoded(end)


def _is_stuck(row: Row) -> bool:
    return len(row.ids) >= row.limit or runs_away(row.ids)


def _score(row: Row) -> float:
    return sum(row.log_probabilities) / len(row.ids)


def _forks(rows: Sequence[Row], log_p_WV: Tensor, count: int) -> list[tuple[int, Row]]:
    """The `count` likeliest continuations by one token: (row continued, new row), best first."""
    so_far_W1 = torch.tensor([[sum(row.log_probabilities)] for row in rows])
    total_WV = log_p_WV + so_far_W1
    best = total_WV.flatten().topk(min(count, total_WV.numel()))
    forks = []
    for score, place in zip(best.values.tolist(), best.indices.tolist(), strict=True):
        parent, token = divmod(place, log_p_WV.shape[1])
        if score == -torch.inf:
            break
        row = rows[parent]
        forks.append(
            (
                parent,
                dataclasses.replace(
                    row,
                    ids=[*row.ids, token],
                    log_probabilities=[
                        *row.log_probabilities,
                        float(log_p_WV[parent, token]),
                    ],
                ),
            )
        )
    return forks
