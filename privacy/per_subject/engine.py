"""The per-subject gradient engine.

Shapes: B rows (utterances) of a microbatch, U subjects, D trained numbers, r rank, E experts.

Memory. Activations grow with the rows of one `loss()` call, the microbatch; gradients take
U · D · 4 bytes whatever the microbatch. So choose the microbatch (rows per `loss()` call) for the
activations, as for plain training, and the subjects held at once for the gradients: `gradients`
holds all of them, `clipped_sum` only the subjects of one microbatch. For D = 270,336 a subject
costs 1.1 MB. Rows of one subject may lie in several microbatches.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from privacy.errors import UnsupportedLayerError
from privacy.per_subject.contract import AdapterLayer, GradientError
from privacy.per_subject.lot import Lot
from privacy.per_subject.packing import Packing
from privacy.per_subject.step import Loss, Step
from privacy.plan import TensorSpec


class PerSubjectEngine:
    """Per-subject gradients of adapter layers, in the flat packing order of an update.

    Args:
        layers: the adapted layers; their factors are read anew at every call.
        tensors: names of the trained tensors in packing order, each `<layer>.down`,
            `<layer>.up` or `<layer>.core`; by default layer by layer (core; or down then up).

    Raises:
        UnsupportedLayerError: no layers, a repeated layer, factors of impossible shapes, or
            `tensors` that are not exactly the trained ones.
    """

    def __init__(
        self, layers: Sequence[AdapterLayer], *, tensors: Sequence[str] | None = None
    ) -> None:
        self._layers = tuple(layers)
        self._packing = Packing(self._layers, tensors)

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """Names and shapes of the trained tensors in packing order."""
        return self._packing.tensors

    @property
    def size(self) -> int:
        """D, trained numbers in all."""
        return self._packing.size

    def new_gradients(self, subjects: int) -> Tensor:
        """Zeros [U, D] in the layers' dtype and on their device, for `accumulate`."""
        return self._layers[0].down.new_zeros(subjects, self.size)

    def gradients(self, loss: Loss, row_subject_B: Tensor, subjects: int) -> Tensor:
        """Gradients [U, D] of the sum of each subject's row losses.

        Args:
            loss: runs the model on the batch and returns one loss per row, [B]. A row's loss
                must not depend on other rows (`verify_rows` checks that).
            row_subject_B: subject of each row, in 0..subjects-1, in any order.
            subjects: U; a subject without rows has a zero gradient.

        Raises:
            GradientError: losses or rows are not what is asked for.
            UnsupportedLayerError: a layer's input or routing does not tell rows apart, or a
                layer's own adapter is still active beside the engine.
        """
        gradients_UD = self.new_gradients(subjects)
        self.accumulate(gradients_UD, loss, row_subject_B)
        return gradients_UD

    def accumulate(self, gradients_UD: Tensor, loss: Loss, row_subject_B: Tensor) -> None:
        """Add one microbatch's gradients to `gradients_UD`; see `gradients`.

        No rows are no work: an empty microbatch does not run `loss`.
        """
        subjects, size = gradients_UD.shape
        if size != self.size:
            raise GradientError(
                f"gradient rows hold {size} numbers where the adapter has {self.size}",
                remedy="make them with new_gradients()",
            )
        if row_subject_B.ndim != 1 or row_subject_B.is_floating_point():
            raise GradientError(
                f"row_subject_B has shape {tuple(row_subject_B.shape)} and {row_subject_B.dtype}",
                remedy="pass one integer per row",
            )
        if not len(row_subject_B):
            return
        first, last = (int(end) for end in row_subject_B.aminmax())
        if first < 0 or last >= subjects:
            raise GradientError(
                f"a row names subject {first if first < 0 else last} of {subjects}",
                remedy="number subjects from 0",
            )
        # Only the span of subjects in this microbatch is touched.
        span_UD = gradients_UD[first : last + 1]
        row_subject_B = (row_subject_B - first).to(gradients_UD.device)
        Step(self._packing, span_UD, row_subject_B).run(self._layers, loss)

    def clipped_sum(
        self,
        batches: Iterable[tuple[Loss, Tensor]],
        subjects: int,
        clipping_norm: float,
    ) -> tuple[Tensor, Tensor]:
        """Sum [D] of the clipped gradients of a lot of any size, and their norms [U] unclipped.

        Holds gradients only of the subjects in the current microbatch. A subject's rows may
        span several microbatches that follow one another: it is clipped, once, when a
        microbatch comes that does not hold it.

        A gradient that is not finite is left out, as `clip_and_sum` explains, and shows in its
        norm.

        Args:
            batches: pairs (loss, row_subject_B) as for `gradients`, with subjects numbered
                over the whole lot; rows in subject order.
            subjects: subjects in the lot.
            clipping_norm: C, L2 bound of one subject's gradient.

        Raises:
            GradientError: a subject comes back after it was clipped; it would count twice.
        """
        lot = Lot(self.new_gradients(0), subjects, clipping_norm)
        for loss, row_subject_B in batches:
            gradients_UD, local_B = lot.open(row_subject_B)
            self.accumulate(gradients_UD, loss, local_B)
        return lot.finish()

    def verify_rows(self, loss: Loss, rows: int) -> None:
        """Check on real data that each row's loss reaches that row's gradient alone.

        Runs one backward pass from the first row's loss and one from the last's. Catches what
        no inspection of modules can: time-first inputs, batch statistics, rows mixed or
        repeated inside the model, routing numbered otherwise. It sees what is differentiable;
        a coupling through a detached value is for the alone-equals-in-batch probe.

        Raises:
            UnsupportedLayerError: naming the layers whose gradients cross rows.
        """
        for row in {0, rows - 1}:
            gradients_BD = self.new_gradients(rows)
            row_subject_B = torch.arange(rows, device=gradients_BD.device)
            Step(self._packing, gradients_BD, row_subject_B).run(self._layers, loss, only_row=row)
            gradients_BD[row] = 0
            crossed = [
                tensor.name
                for tensor in self.tensors
                if self._packing.view(gradients_BD, tensor.name).count_nonzero()
            ]
            if crossed:
                raise UnsupportedLayerError(
                    f"the loss of row {row} reaches other rows' gradients in {crossed[:4]}",
                    remedy="give layers [B, T, width] inputs and make no row depend on another",
                )
