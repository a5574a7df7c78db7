"""What the engine asks of an adapter layer and of a mixture's routing. Duck-typed: torch only.

Shapes: B rows (utterances), T tokens of a row, S expert-sorted slots (B·T·k at top-k), E experts,
r rank.
"""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor, nn

from privacy.errors import AuricleError

Kind = Literal["linear", "convolution", "embedding", "experts"]


class GradientError(AuricleError):
    """The engine was handed rows, losses or a stream that cannot give per-subject gradients."""

    code = "gradient-invalid"
    exit_code = 8


class Routing(Protocol):
    """Where a mixture sent its tokens; handed to every delta of a stacked-expert layer.

    Attributes:
        token_S: row-major token index b·T + t of each slot; each token appears k times.
        expert_S: expert of each slot, non-decreasing.
        offsets_E: cumulative end of each expert's slots.
    """

    @property
    def token_S(self) -> Tensor: ...  # noqa: N802 - shape suffix

    @property
    def expert_S(self) -> Tensor: ...  # noqa: N802

    @property
    def offsets_E(self) -> Tensor: ...  # noqa: N802


class AdapterLayer(Protocol):
    """One adapted weight: output += scaling · x Aᵀ Rᵀ Bᵀ, where R is the identity for LoRA.

    Attributes:
        name: unique name, used in packing order and in refusals.
        module: for "linear", called with x [B, ..., in]; for "convolution", a 1- or 2-dimensional
            one without groups; for "embedding", called with tokens [B, ...]; for "experts", has
            `deltas`, a mutable mapping from stacked parameter name to a callable
            (x_S [S, in], routing) -> [S, out] that the module adds to that parameter's output.
        parameter: for "experts", the stacked parameter that is adapted; None for the others.
        down: A, [r, in] or [E, r, in]; of a convolution, `in` is channels times kernel; of an
            embedding, tokens.
        up: B, [out, r] or [E, out, r].
        core: R, [r, r] (shared by all experts of a stack) or [E, r, r]; when present it alone
            trains, and A and B are frozen.
        scaling: factor of the adapter's output.
    """

    @property
    def name(self) -> str: ...

    @property
    def module(self) -> nn.Module: ...

    @property
    def kind(self) -> Kind: ...

    @property
    def parameter(self) -> str | None: ...

    @property
    def down(self) -> Tensor: ...

    @property
    def up(self) -> Tensor: ...

    @property
    def core(self) -> Tensor | None: ...

    @property
    def scaling(self) -> float: ...
