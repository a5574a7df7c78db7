"""A lot larger than memory: subjects are clipped and summed as soon as their rows are over.

Shapes: B rows (utterances) of a microbatch, U subjects of the lot, P subjects held now, D trained
numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from privacy.mechanism import clip_and_sum
from privacy.per_subject.contract import GradientError


class Lot:
    """Running clipped sum over the subjects of one lot.

    Args:
        like: any tensor [0, D] of the gradients' dtype and device.
        subjects: subjects in the lot.
        clipping_norm: C, L2 bound of one subject's gradient.
    """

    def __init__(self, like: Tensor, subjects: int, clipping_norm: float) -> None:
        self._clipping_norm = clipping_norm
        self._held_P = torch.empty(0, dtype=torch.long, device=like.device)
        self._gradients_PD = like
        self._closed_U = torch.zeros(subjects, dtype=torch.bool, device=like.device)
        # In double precision, as clip_and_sum answers.
        self._norms_U = like.new_zeros(subjects, dtype=torch.float64)
        self._sum_D = like.new_zeros(like.shape[1], dtype=torch.float64)

    def open(self, row_subject_B: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients [P, D] to add this microbatch to, and the entry of each row in them, [B].

        Subjects held before and absent now are clipped, summed and closed.

        Raises GradientError when a row belongs to a closed subject or to none of the lot.
        """
        row_subject_B = row_subject_B.to(self._held_P.device)
        present_P, row_entry_B = torch.unique(row_subject_B, return_inverse=True)
        if len(present_P) and not 0 <= int(present_P[0]) <= int(present_P[-1]) < len(
            self._closed_U
        ):
            raise GradientError(
                f"a row names a subject outside the lot's {len(self._closed_U)}",
                remedy="number the lot's subjects from 0",
            )
        if self._closed_U[present_P].any():
            raise GradientError(
                "a subject's rows come back after it was clipped; it would be counted twice",
                remedy="order the lot's rows by subject before cutting microbatches",
            )
        self._turn_to(present_P)
        return self._gradients_PD, row_entry_B

    def finish(self) -> tuple[Tensor, Tensor]:
        """Close what is held; the sum [D] of clipped gradients and the norms [U] before."""
        self._turn_to(self._held_P[:0])
        return self._sum_D, self._norms_U

    def _turn_to(self, present_P: Tensor) -> None:
        stays_P = torch.isin(self._held_P, present_P)
        over_P = self._held_P[~stays_P]
        if len(over_P):
            whole = len(over_P) == len(self._held_P)
            closing_PD = self._gradients_PD if whole else self._gradients_PD[~stays_P]
            sum_D, self._norms_U[over_P] = clip_and_sum(closing_PD, self._clipping_norm)
            self._sum_D += sum_D
            self._closed_U[over_P] = True
        kept_PD = self._gradients_PD[stays_P]
        if len(kept_PD) == 0 and len(present_P) == len(self._gradients_PD):
            self._gradients_PD.zero_()
        else:
            self._gradients_PD = kept_PD.new_zeros(len(present_P), kept_PD.shape[1])
            entries = torch.searchsorted(present_P, self._held_P[stays_P])
            self._gradients_PD[entries] = kept_PD
        self._held_P = present_P
