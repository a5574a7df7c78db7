"""Custom vocabulary: terms are made likelier while they are being spelled.

Shallow fusion with a prefix tree of the terms' tokens (Le et al. 2021, "Contextualized Streaming
End-to-End Speech Recognition with Trie-Based Deep Biasing and Shallow Fusion", section 3.2): a
token that begins a term, or goes on with one that has begun, gets a bonus on its log-probability.
The bonus is for choosing only: confidences stay those of the model.

Beginning and going on have bonuses of their own. To begin a term is the risky part: any word might
be mistaken for it, and a greedy decoder takes nothing back. Once its first token stands, the sound
has spoken. For greedy decoding only: in a beam, whose texts compete by their sums, bonuses of this
size write terms that nobody said (docs/model.md, "Expected words").

Shape suffixes: N rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from model_core.tokens import SpeechTokenizer

BEGIN_BONUS = 2.0
CONTINUE_BONUS = 8.0


@dataclasses.dataclass
class _Node:
    children: dict[int, _Node] = dataclasses.field(default_factory=dict)


class TermBias:
    """The terms of one recording or stream, ready to bias a decoding. Threads may share it."""

    def __init__(
        self,
        tokenizer: SpeechTokenizer,
        terms: Iterable[str],
        *,
        begin_bonus: float = BEGIN_BONUS,
        continue_bonus: float = CONTINUE_BONUS,
    ) -> None:
        """Bonuses are natural logarithms. Each term is looked for as written and capitalised.

        Raises TextError (text-empty) for a term of white space only.
        """
        self._begin, self._continue = begin_bonus, continue_bonus
        self._root, self._depth = _Node(), 0
        for term in terms:
            for spelling in {term, term[:1].upper() + term[1:]}:
                self._add(tokenizer.encode(spelling))

    def apply(self, logits_NV: Tensor, written: Sequence[Sequence[int]]) -> Tensor:
        """The logits [N, V] with the bonuses after each row's tokens; the given are unchanged.

        A token that was banned (-inf) stays banned.
        """
        biased_NV = logits_NV.clone()
        for biased_V, ids in zip(biased_NV, written, strict=True):
            bonuses = self.bonuses(ids)
            if bonuses:
                biased_V[torch.tensor(list(bonuses))] += torch.tensor(list(bonuses.values()))
        return biased_NV

    def bonuses(self, ids: Sequence[int]) -> dict[int, float]:
        """Bonus of each token that begins a term or goes on with one after `ids`."""
        found = dict.fromkeys(self._root.children, self._begin)
        for node in self._within(ids):
            found |= dict.fromkeys(node.children, self._continue)
        return found

    def _within(self, ids: Sequence[int]) -> list[_Node]:
        """Nodes of terms that the last ids have begun and not ended, shortest beginning first."""
        nodes: list[_Node] = []
        for length in range(1, min(self._depth, len(ids) + 1)):
            node = self._walk(ids[-length:])
            if node is not None and node.children:
                nodes.append(node)
        return nodes

    def _walk(self, ids: Sequence[int]) -> _Node | None:
        node: _Node | None = self._root
        for token in ids:
            if node is not None:
                node = node.children.get(token)
        return node

    def _add(self, ids: Sequence[int]) -> None:
        node = self._root
        for token in ids:
            node = node.children.setdefault(token, _Node())
        self._depth = max(self._depth, len(ids))
