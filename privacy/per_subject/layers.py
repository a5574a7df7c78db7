"""Convolutions and embeddings as the linear layers that they are, for the adapters' arithmetic.

A convolution is a linear layer over patches of its input, an embedding one over one-hot tokens
that nobody writes out. Either way a row stays a row, and the products of `Rows` serve.

Shapes: B rows, T positions, C channels, r rank, V vocabulary, U subjects.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from privacy.per_subject.grouping import Rows


def patches(convolution: Any, x: Tensor) -> Tensor:
    """What each output position of a 1- or 2-dimensional convolution sees: [B, T, C·kernel].

    For input [B, C, length] or [B, C, height, width] and zero padding; differentiable.
    """
    kernel, stride = convolution.kernel_size, convolution.stride
    padding, dilation = convolution.padding, convolution.dilation
    if x.dim() == 3:
        x = x.unsqueeze(2)
        kernel, stride, dilation = (1, *kernel), (1, *stride), (1, *dilation)
        padding = (0, *padding)
    columns_BcT = functional.unfold(x, kernel, dilation=dilation, padding=padding, stride=stride)
    return columns_BcT.transpose(1, 2)


class Tokens(Rows):
    """Token numbers in their rows, as an embedding sees them: x is [B, T], integer."""

    def __init__(self, row_subject_B: Tensor, padding_token: int | None) -> None:
        """`padding_token` is the embedding's `padding_idx`."""
        super().__init__(row_subject_B)
        self.padding_token = padding_token

    def times(self, x: Tensor, weight: Tensor) -> Tensor:
        """Tokens [B, T] by [r, V] to [B, T, r]; numbers as `Rows` does."""
        return super().times(x, weight) if x.is_floating_point() else weight.t()[x]

    def add_outer(self, into: Tensor, left: Tensor, right: Tensor) -> None:
        """Add each row's left, [B, T, r], to the columns of its tokens in `into`, [U, r, V].

        A padding token has no gradient, as in `nn.Embedding`.
        """
        if right.is_floating_point():
            super().add_outer(into, left, right)
            return
        if self.padding_token is not None:
            left = left * (right != self.padding_token).unsqueeze(-1)
        subject_BT = self.row_subject_B.unsqueeze(1).expand_as(right)
        into.transpose(1, 2).index_put_((subject_BT, right), left, accumulate=True)


def is_tokens(x: Tensor) -> bool:
    """Whether `x` is token numbers, which are not to be converted."""
    return x.dtype in (torch.int32, torch.int64)
