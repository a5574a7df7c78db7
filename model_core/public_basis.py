"""Frozen outer factors from the gradients of public recordings.

Of a gradient G [out, in], a core between frozen factors A and U sees only Uᵀ G Aᵀ: r x r numbers.
The weights' own singular directions (`model_core.basis.make_basis`) say what a layer does now; the
directions in which gradients of similar speech move it say what an adapter should be able to
change. With G_u the gradient of public utterance u at a target and n_u its norm over all targets
together, the rows of A are the top eigenvectors of Σ_u G_uᵀ G_u / n_u², and the columns of U those
of Σ_u G_u G_uᵀ / n_u². Dividing by n_u gives every utterance one vote, as clipping does later.
(LoRA-XS, Bałazy et al. 2024, takes both from the weights; choosing a subspace for private gradients
from public ones: Zhou et al. 2021, arXiv:2007.03813, and Yu et al. 2021, arXiv:2102.12677.)

No G_u is ever formed: with its tokens' inputs X and output gradients Y, one token a row, G_u = Yᵀ X
and G_uᵀ G_u = Xᵀ (Y Yᵀ) X.

Shape suffixes: B utterances, T decoder positions (times a token's slots, for experts), I inputs and
O outputs of a target, S expert-sorted slots, N encoder states, D width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_core.adapter_targets import AdapterConfig, Target, find_targets
from model_core.base import SpeechBase
from model_core.errors import AdapterError
from model_core.experts import Routing, StackedExperts
from model_core.training import Example, collate, row_losses
from model_core.twin import twin

_BATCH = 32


def public_basis(
    base: SpeechBase, config: AdapterConfig, states_BND: Tensor, examples: Sequence[Example]
) -> dict[str, Tensor]:
    """The basis of a core, from public utterances: their encoder states and transcripts.

    The factors are orthonormal. Experts of a stack share one pair, as they share one core.

    Raises AdapterError: `adapter-target`, or `adapter-basis` for a rank above a target's width and
    for utterances without any gradient at the targets.
    """
    model = twin(base.model)
    targets = find_targets(model, config)
    moments = {target.name: _Moments(*target.weight.shape[-2:]) for target in targets}
    for start in range(0, len(examples), _BATCH):
        chosen = slice(start, start + _BATCH)
        ids_BT, weight_BT = collate(examples[chosen], pad=base.tokenizer.end)
        with _tapped(model, targets) as taps, torch.enable_grad():
            total = row_losses(model, states_BND[chosen], ids_BT, weight_BT).sum()
            gradients = torch.autograd.grad(total, [taps[t.name].output for t in targets])
        passed = {
            target.name: taps[target.name].by_utterance(gradient, len(ids_BT))
            for target, gradient in zip(targets, gradients, strict=True)
        }
        _count_votes(moments, passed)
    basis: dict[str, Tensor] = {}
    for target in targets:
        stack = target.weight.shape[:-2]
        moment = moments[target.name]
        down = _leading(moment.inputs_II, config.rank, target.name).mT
        up = _leading(moment.outputs_OO, config.rank, target.name)
        basis[f"{target.name}.down"] = down.expand(*stack, -1, -1).contiguous()
        basis[f"{target.name}.up"] = up.expand(*stack, -1, -1).contiguous()
    return basis


class _Moments:
    """Sums over utterances of G_uᵀ G_u and G_u G_uᵀ at one target."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self.inputs_II = torch.zeros(inputs, inputs)
        self.outputs_OO = torch.zeros(outputs, outputs)


def _count_votes(moments: dict[str, _Moments], passed: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Add a batch's G_uᵀ G_u / n_u² and G_u G_uᵀ / n_u²; no gradient, no vote."""
    grams = {name: (x_BTI @ x_BTI.mT, y_BTO @ y_BTO.mT) for name, (x_BTI, y_BTO) in passed.items()}
    square_B = torch.stack([(x_BTT * y_BTT).sum((1, 2)) for x_BTT, y_BTT in grams.values()]).sum(0)
    vote_B11 = torch.where(square_B > 0, 1 / square_B, 0.0)[:, None, None]
    for name, (x_BTI, y_BTO) in passed.items():
        x_BTT, y_BTT = grams[name]
        moments[name].inputs_II += _sandwich(x_BTI, y_BTT * vote_B11)
        moments[name].outputs_OO += _sandwich(y_BTO, x_BTT * vote_B11)


@dataclass(frozen=True)
class _Tap:
    """What passed one target in one batch: its input and output, and for experts the routing."""

    x: Tensor
    output: Tensor
    routing: Routing | None = None

    def by_utterance(self, gradient: Tensor, rows: int) -> tuple[Tensor, Tensor]:
        """Inputs [B, T, I] and output gradients [B, T, O]."""
        x, y = self.x, gradient
        if self.routing is not None:
            # Routing is dropless: every utterance has the same number of slots.
            order_S = self.routing.token_S.argsort(stable=True)
            x, y = x[order_S], y[order_S]
        return x.reshape(rows, -1, x.shape[-1]), y.reshape(rows, -1, y.shape[-1])


@contextlib.contextmanager
def _tapped(model: nn.Module, targets: Sequence[Target]) -> Iterator[dict[str, _Tap]]:
    """Record what passes the targets; their outputs become differentiable, their values stay."""
    taps: dict[str, _Tap] = {}
    with contextlib.ExitStack() as undo:
        for target in targets:
            module = model.get_submodule(target.module_name)
            if isinstance(module, StackedExperts) and target.parameter is not None:
                module.deltas[target.parameter] = _zero_delta(taps, target)
                undo.callback(module.deltas.pop, target.parameter)
            else:
                hook = module.register_forward_hook(_recorder(taps, target.name))
                undo.callback(hook.remove)
        yield taps


def _zero_delta(taps: dict[str, _Tap], target: Target) -> Callable[[Tensor, Routing], Tensor]:
    def delta(x_SI: Tensor, routing: Routing) -> Tensor:
        zero_SO = x_SI.new_zeros(len(x_SI), target.weight.shape[-2], requires_grad=True)
        taps[target.name] = _Tap(x_SI.detach(), zero_SO, routing)
        return zero_SO

    return delta


def _recorder(taps: dict[str, _Tap], name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        output = output + output.new_zeros((), requires_grad=True)
        taps[name] = _Tap(inputs[0].detach(), output)
        return output

    return hook


def _sandwich(x_BTI: Tensor, middle_BTT: Tensor) -> Tensor:
    """Σ_b X_bᵀ M_b X_b: [I, I]."""
    return torch.einsum("bti,btj->ij", x_BTI, middle_BTT @ x_BTI)


def _leading(moment: Tensor, rank: int, name: str) -> Tensor:
    """The `rank` leading eigenvectors as columns, largest first."""
    if rank > len(moment):
        raise AdapterError(
            f"rank {rank} is above {len(moment)}, the width of {name}",
            remedy="choose a smaller rank",
            code="adapter-basis",
        )
    if not bool(moment.any()):
        raise AdapterError(
            f"no public utterance has a gradient at {name}",
            remedy="give public utterances with transcripts",
            code="adapter-basis",
        )
    vectors: Tensor = torch.linalg.eigh(moment).eigenvectors
    return vectors[:, -rank:].flip(1)
