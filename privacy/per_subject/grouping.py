"""Matrix products whose sums stop at a subject's edge.

Shapes: B rows (utterances), T tokens of a row, U subjects, E experts, S expert-sorted slots,
a and b widths of the two sides of an outer product.

Both groupings offer the same three products, so that the autograd function is written once:
`times` is x Wᵀ, `times_transposed` is g W, and `add_outer` adds Σ leftᵀ right of each subject to
that subject's gradient. The last replaces the batch's Σ leftᵀ right and does the same number of
multiplications.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import Routing

GROUPED_MM_ALIGNMENT_BYTES = 16


class Grouping(Protocol):
    """The three products of an adapter; see the module's docstring."""

    def times(self, x: Tensor, weight: Tensor) -> Tensor: ...

    def times_transposed(self, g: Tensor, weight: Tensor) -> Tensor: ...

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None: ...


class Rows:
    """Tokens kept in their rows, as a linear layer sees them: x is [B, T, width]."""

    def __init__(self, row_subject_B: Tensor) -> None:
        self.row_subject_B = row_subject_B
        self.count = len(row_subject_B)
        counted_B = torch.arange(self.count, device=row_subject_B.device)
        self.one_row_each = torch.equal(row_subject_B, counted_B)

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """[B, T, in] by [out, in] to [B, T, out]."""
        return x @ weight.t()

    def times_transposed(self, g: Tensor, weight: Tensor) -> Tensor:
        """[B, T, out] by [out, in] to [B, T, in]."""
        return g @ weight

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add each row's leftᵀ right, [a, b], to its subject's entry of `into`, [U, a, b]."""
        # The narrow side first: measured five times faster on CPU than a tall product.
        if left.shape[-1] > right.shape[-1]:
            product_Bab = torch.bmm(right.transpose(1, 2), left).transpose(1, 2)
        else:
            product_Bab = torch.bmm(left.transpose(1, 2), right)
        if self.one_row_each:
            into.add_(product_Bab)
        else:
            into.index_add_(0, self.row_subject_B, product_Bab)


class Slots:
    """Tokens sorted by expert, as a stacked-expert layer sees them: x is [S, width].

    Raises UnsupportedLayerError when the routing is not dropless: then a token index no longer
    tells its row, and one subject's tokens could displace another's.
    """

    def __init__(self, routing: Routing, rows: Rows, subjects: int) -> None:
        self.subjects = subjects
        self.experts = len(routing.offsets_E)
        subject_S = rows.row_subject_B[_row_of(routing, rows.count)]
        key_S = routing.expert_S * subjects + subject_S
        in_order = bool((key_S[1:] >= key_S[:-1]).all())
        self.order_S = None if in_order else torch.argsort(key_S, stable=True)
        segments_EU = torch.bincount(key_S, minlength=self.experts * subjects)
        self.ends_EU = segments_EU.cumsum(0)
        per_expert_E = segments_EU.view(self.experts, subjects).sum(1)
        if not torch.equal(per_expert_E.cumsum(0), routing.offsets_E.to(per_expert_E.dtype)):
            raise _refusal("its offsets do not match the experts of its slots")
        self.sizes_E: list[int] = per_expert_E.tolist()

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """[S, in] by [E, out, in], or by one [out, in] for all experts, to [S, out]."""
        return x @ weight.t() if weight.dim() == 2 else self._by_expert(x, weight.transpose(1, 2))

    def times_transposed(self, g: Tensor, weight: Tensor) -> Tensor:
        """[S, out] by [E, out, in], or by one [out, in] for all experts, to [S, in]."""
        return g @ weight if weight.dim() == 2 else self._by_expert(g, weight)

    def _by_expert(self, x_Sa: Tensor, weight_Eab: Tensor) -> Tensor:
        out_Sb = x_Sa.new_empty(len(x_Sa), weight_Eab.shape[2])
        for part, out, weight in zip(
            torch.split(x_Sa, self.sizes_E),
            torch.split(out_Sb, self.sizes_E),
            weight_Eab,
            strict=True,
        ):
            torch.mm(part, weight, out=out)
        return out_Sb

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add leftᵀ right of each (subject, expert) to `into`, [U, E, a, b].

        Where the experts share one factor, `into` is [U, a, b] and takes their sum.
        """
        if self.order_S is not None:
            left, right = left[self.order_S], right[self.order_S]
        # As in Rows: the narrow side first.
        if left.shape[1] > right.shape[1]:
            product = _segment_products(right, left, self.ends_EU).transpose(1, 2)
        else:
            product = _segment_products(left, right, self.ends_EU)
        by_expert = product.view(self.experts, self.subjects, *product.shape[1:])
        into.add_(by_expert.sum(0) if into.dim() == 3 else by_expert.transpose(0, 1))


def _row_of(routing: Routing, rows: int) -> Tensor:
    """Row of each slot, [S], from its token index b·T + t."""
    token_S = routing.token_S
    uses_N = torch.bincount(token_S)
    tokens = len(uses_N)
    if tokens == 0 or int(uses_N.min()) != int(uses_N.max()):
        raise _refusal("it does not use every token equally often, so it drops or prefers tokens")
    if tokens % rows:
        raise _refusal(f"its {tokens} tokens do not divide into the batch's {rows} rows")
    return token_S // (tokens // rows)


def _refusal(why: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"the mixture's routing cannot be split by subject: {why}",
        remedy="use dropless token-choice routing with token index b*T + t over all rows",
        code="routing-unsupported",
    )


def _segment_products(left_Sa: Tensor, right_Sb: Tensor, ends_G: Tensor) -> Tensor:
    """leftᵀ right of each of G consecutive segments of S, [G, a, b]; zero where one is empty."""
    a, b = left_Sa.shape[1], right_Sb.shape[1]
    if left_Sa.dtype == torch.float64:  # torch's grouped product knows no doubles
        out_Gab = left_Sa.new_zeros(len(ends_G), a, b)
        start = 0
        for end, out in zip(ends_G.tolist(), out_Gab, strict=True):
            if end > start:
                torch.mm(left_Sa[start:end].t(), right_Sb[start:end], out=out)
            start = end
        return out_Gab
    left_Sa, right_Sb = _aligned(left_Sa), _aligned(right_Sb)
    return functional.grouped_mm(left_Sa.t(), right_Sb, offs=ends_G.to(torch.int32))[:, :a, :b]


def _aligned(x_Sa: Tensor) -> Tensor:
    """Contiguous, with zero columns added until a row's bytes suit the grouped product."""
    multiple = GROUPED_MM_ALIGNMENT_BYTES // x_Sa.element_size()
    return functional.pad(x_Sa, (0, -x_Sa.shape[1] % multiple)).contiguous()
