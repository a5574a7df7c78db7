"""One audited run: canaries go through sampler, clipping, noise and packing beside real subjects.

Every step is the one that a site runs. Only the canaries' gradients are given and not computed: a
direction each, drawn at random, far longer than the clipping norm. Nothing stronger can be put into
a round by a subject, and the auditor sees every update, so that an attacker who sees less learns
less. Subjects beside them are invented recordings on the base.

Shapes: M canaries, U subjects of a lot, D trained numbers, B rows.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import numpy as np
import torch
from torch import Tensor

from client_node.invented_rows import invent_rows
from model_core.adapter import Adapter, AdapterConfig, attach
from model_core.base import SpeechBase
from model_core.basis import make_basis
from model_core.training import collate, row_losses
from privacy.accountant import MechanismEvent, epsilon
from privacy.audit import (
    AuditError,
    Included,
    Interval,
    LowerBound,
    Scores,
    gaussian_interval,
    lower_bound,
)
from privacy.mechanism import clip_and_sum, privatise
from privacy.per_subject import PerSubjectEngine
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.random_source import RandomSource

TARGETS = (r"model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(q|k|v|out)_proj",)
_LOUD = 10.0  # times the clipping norm


@dataclasses.dataclass(frozen=True)
class Audit:
    """What one run showed.

    Attributes:
        claimed: ε of the run by the accountant, at `delta`.
        bound: lower bound that assumes nothing of the mechanism.
        interval: of ε, if scores are Gaussian.
        scores_M: the auditor's score of each canary.
        included_M: whether it took part.
    """

    claimed: float
    delta: float
    confidence: float
    bound: LowerBound
    interval: Interval
    scores_M: Scores  # noqa: N815 - shape suffix
    included_M: Included  # noqa: N815

    @property
    def refuted(self) -> bool:
        """Whether the run shows that ε is more than claimed."""
        return self.bound.epsilon > self.claimed


def audit_plan(
    base: SpeechBase,
    adapter: Adapter,
    *,
    sampling_rate: float,
    noise_multiplier: float,
    rounds: int,
) -> RoundPlan:
    """The plan of an audited run: as a coordinator would issue it, for one site."""
    tensors = tuple(TensorSpec(name, shape) for name, shape in adapter.tensor_specs())
    spec = AdapterSpec(
        "core", adapter.config.rank, adapter.config.scaling, TARGETS, (), tensors, "0" * 64
    )
    return RoundPlan(
        job=hashlib.sha256(b"audit").hexdigest()[:16],
        purpose="audit",
        base_sha256=base.base_sha256,
        adapter=spec,
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier,
        clipping_norm=1.0,
        rounds=rounds,
        delta=1e-5,
        expected_subjects=1,
        max_utterances_per_subject=1,
        honest_sites=1,
        sites=("audit",),
        quorum=1,
        deadline_s=60.0,
        optimiser=OptimiserSpec("sgd", 0.1),
        issued_at="1970-01-01T00:00:00Z",
    )


def attach_for_audit(base: SpeechBase, rank: int) -> Adapter:
    """A core adapter on the decoder's attention."""
    config = AdapterConfig("core", rank, 1.0, TARGETS)
    return attach(base.model, config, make_basis(base.model, config))


class CanaryRun:
    """A run of all rounds of a plan with canaries among its subjects."""

    def __init__(
        self,
        base: SpeechBase,
        adapter: Adapter,
        plan: RoundPlan,
        source: RandomSource,
        *,
        subjects: int,
        seed: int,
    ) -> None:
        """`subjects` invented speakers train beside the canaries; `seed` draws the canaries."""
        self._base, self._adapter, self._plan, self._source = base, adapter, plan, source
        self._engine = PerSubjectEngine(adapter.layers)
        self._subjects = subjects
        self._seed = seed

    def audit(self, canaries: int, confidence: float) -> Audit:
        """Include each of `canaries` with probability one half, train, guess, and bound ε.

        Raises AuditError where the adapter is too small to tell so many canaries apart.
        """
        if canaries > self._engine.size:
            raise AuditError(
                f"{canaries} canaries do not fit into {self._engine.size} trained numbers",
                remedy="use fewer canaries or a higher --rank",
            )
        generator = torch.Generator().manual_seed(self._seed)
        canaries_MD = torch.randn(canaries, self._engine.size, generator=generator)
        canaries_MD /= canaries_MD.norm(dim=1, keepdim=True)
        included_M = torch.rand(canaries, generator=generator) < 0.5
        scores_M = torch.zeros(canaries, dtype=torch.float64)
        inside_D = canaries_MD[included_M] * _LOUD * self._plan.clipping_norm
        for _ in range(self._plan.rounds):
            scores_M += canaries_MD.double() @ self._round(inside_D).double()
        plan = self._plan
        event = MechanismEvent(plan.sampling_rate, plan.noise_multiplier, plan.rounds)
        scores = scores_M.numpy()
        included: Included = included_M.numpy().astype(np.bool_)
        return Audit(
            claimed=epsilon([event], plan.delta),
            delta=plan.delta,
            confidence=confidence,
            bound=lower_bound(scores, included, plan.delta, confidence),
            interval=gaussian_interval(scores, included, plan.delta, confidence),
            scores_M=scores,
            included_M=included,
        )

    def _round(self, canaries_MD: Tensor) -> Tensor:
        """One update [D] of a lot sampled from speakers and canaries."""
        population = self._subjects + len(canaries_MD)
        chosen = self._source.poisson_sample(population, self._plan.sampling_rate)
        speakers = [index for index in chosen if index < self._subjects]
        in_lot = [index - self._subjects for index in chosen if index >= self._subjects]
        gradients_UD = torch.cat([self._speakers(speakers), canaries_MD[in_lot]])
        sum_D, _ = clip_and_sum(gradients_UD, self._plan.clipping_norm)
        return privatise(sum_D, self._plan, self._source)

    def _speakers(self, speakers: list[int]) -> Tensor:
        """Gradients [U, D] of invented speakers, one row each."""
        if not speakers:
            return self._engine.new_gradients(0)
        rows = [invent_rows(self._base, seed, 1)[0] for seed in speakers]
        states_BSD = torch.stack([states for states, _ in rows])
        ids_BT, weight_BT = collate([example for _, example in rows], self._base.tokenizer.end)
        model = self._adapter.peft_model.get_base_model()
        loss = functools.partial(row_losses, model, states_BSD, ids_BT, weight_BT)
        with self._adapter.training_mode():
            return self._engine.gradients(loss, torch.arange(len(rows)), len(rows))
