"""Attacks on what leaves a site, each on updates without noise and on those that are released.

A nano speech model, real engine, mechanism and source; the attacker is given everything but the
data: weights, plan, candidate recordings. Advantage is what a guess is worth beyond chance, in
[0, 1]: |2·P(right) - 1| for two answers, and (P(right) - 1/n)/(1 - 1/n) for n.

* Inversion (Zhu et al. 2019, arXiv:1906.08935; Geiping et al. 2020, arXiv:2003.14053): from one
  subject's update, find the spoken words. The attacker holds the encoder states and tries texts;
  the one whose gradient points most like the update wins.
* Membership (Nasr et al. 2021, arXiv:2101.04535, in the white box): was this subject in the run, by
  the sum over rounds of update · gradient; the release is the sum of all updates.
* Speaker: which of n candidate speakers was
  in the run, by the same score.

Shapes: D trained numbers, N candidates.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from model_core.adapter import AdapterConfig, attach
from model_core.basis import make_basis
from model_core.nano import nano_base
from model_core.training import collate, make_example, row_losses
from privacy.accountant import noise_multiplier_for
from privacy.mechanism import clip_and_sum, privatise
from privacy.per_subject import PerSubjectEngine
from privacy.random_source import SystemRandomSource
from tests.privacy.plans import make_plan

EPSILONS = (8.0, 1.0)
DELTA, RATE, ROUNDS = 1e-5, 0.25, 20
CANDIDATES, COMPANIONS = 8, 12
STATES = 24
TARGETS = (r"model\.decoder\..*\.(q_proj|fc1)",)
WORDS = "take give one two no more insulin heparin warfarin daily nightly never".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True)
class Outcome:
    """An attack's advantage on updates without noise, and on those released at each ε."""

    attack: str
    chance: float
    unnoised: float
    released: dict[float, float]


class Victims:
    """Subjects' gradients on a nano adapter, and updates made of them."""

    def __init__(self, seed: int = 0) -> None:
        self.base = nano_base(seed)
        config = AdapterConfig("core", 6, 1.0, TARGETS)
        self.adapter = attach(self.base.model, config, make_basis(self.base.model, config))
        self.generator = torch.Generator().manual_seed(seed)
        self.adapter.load_vector(0.1 * torch.randn(self.adapter.size, generator=self.generator))
        self.engine = PerSubjectEngine(self.adapter.layers)
        plan = make_plan(sampling_rate=RATE, clipping_norm=1.0)
        spec = dataclasses.replace(plan.adapter, tensors=self.engine.tensors)
        self.plan = dataclasses.replace(plan, adapter=spec)
        self.sigma = {e: noise_multiplier_for(e, DELTA, RATE, ROUNDS) for e in EPSILONS}
        self.source = SystemRandomSource()

    def speech(self, speakers: int) -> Tensor:
        """Encoder states of as many speakers, [N, S, width]."""
        width = self.base.model.config.d_model
        return torch.randn(speakers, STATES, width, generator=self.generator)

    def text(self) -> str:
        """Four random words."""
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (4,), generator=self.generator))

    def gradients(self, states_NSD: Tensor, texts: list[str]) -> Tensor:
        """One clipped gradient a row, [N, D], in directions that an attacker can compute."""
        examples = [make_example(self.base.tokenizer, text) for text in texts]
        ids_BT, weight_BT = collate(examples, self.base.tokenizer.end)
        model = self.adapter.peft_model.get_base_model()
        loss = functools.partial(row_losses, model, states_NSD, ids_BT, weight_BT)
        with self.adapter.training_mode():
            found_ND = self.engine.gradients(loss, torch.arange(len(texts)), len(texts))
        return found_ND / found_ND.norm(dim=1, keepdim=True) * self.plan.clipping_norm

    def update(self, gradients_ND: Tensor, epsilon: float | None) -> Tensor:
        """The sum [D] as it leaves under a job of `epsilon`; before noise where that is None."""
        sum_D, _ = clip_and_sum(gradients_ND, self.plan.clipping_norm)
        if epsilon is None:
            return sum_D.float()
        plan = dataclasses.replace(self.plan, noise_multiplier=self.sigma[epsilon])
        return privatise(sum_D, plan, self.source)

    def run(self, gradients_ND: Tensor, epsilon: float | None) -> Tensor:
        """What a release tells of a run: the sum [D] of the updates of every round."""
        total_D = torch.zeros(self.engine.size)
        for _ in range(ROUNDS):
            lot = self.source.poisson_sample(len(gradients_ND), RATE)
            total_D += self.update(gradients_ND[lot], epsilon)
        return total_D


def inversion(victims: Victims, trials: int) -> Outcome:
    """Which of n texts did the only subject of one round speak?"""

    def right(epsilon: float | None) -> bool:
        states_1SD = victims.speech(1)
        texts = [victims.text() for _ in range(CANDIDATES)]
        candidates_ND = victims.gradients(states_1SD.expand(CANDIDATES, -1, -1), texts)
        update_D = victims.update(candidates_ND[:1], epsilon)
        best = int((candidates_ND @ update_D).argmax())
        return texts[best] == texts[0]

    return _outcome("gradient inversion: the words", 1 / CANDIDATES, _share(right, trials))


def speaker(victims: Victims, trials: int) -> Outcome:
    """Which of n speakers of the same sentence took part in the run?"""

    def right(epsilon: float | None) -> bool:
        candidates_ND = victims.gradients(victims.speech(CANDIDATES), [victims.text()] * CANDIDATES)
        inside_ND = torch.cat([candidates_ND[:1], _companions(victims)])
        return int((candidates_ND @ victims.run(inside_ND, epsilon)).argmax()) == 0

    return _outcome("speaker inference", 1 / CANDIDATES, _share(right, trials))


def membership(victims: Victims, trials: int) -> Outcome:
    """Was this subject in the run? The threshold is the median over runs, which favours him."""

    def rate(epsilon: float | None) -> float:
        scores: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(trials // 2):
            target_1D = victims.gradients(victims.speech(1), [victims.text()])
            companions_ND = _companions(victims)
            for inside in (True, False):
                members_ND = torch.cat([target_1D, companions_ND]) if inside else companions_ND
                scores[inside].append(float(target_1D[0] @ victims.run(members_ND, epsilon)))
        middle = float(torch.tensor(scores[True] + scores[False]).median())
        hits = sum(s > middle for s in scores[True]) + sum(s <= middle for s in scores[False])
        return hits / (2 * (trials // 2))

    return _outcome("membership inference", 0.5, rate)


def attack_all(trials: int, seed: int = 0) -> list[Outcome]:
    """Every attack, `trials` times each."""
    victims = Victims(seed)
    return [attack(victims, trials) for attack in (inversion, speaker, membership)]


def most_advantage(epsilon: float, delta: float) -> float:
    """Most that any membership attack gains under (ε, δ): (e^ε - 1 + 2δ)/(e^ε + 1).

    Kairouz, Oh and Viswanath 2015, arXiv:1311.0776, remark after theorem 2.1.
    """
    power = float(torch.tensor(epsilon).exp())
    return (power - 1 + 2 * delta) / (power + 1)


def _companions(victims: Victims) -> Tensor:
    return victims.gradients(
        victims.speech(COMPANIONS), [victims.text() for _ in range(COMPANIONS)]
    )


def _share(right: Callable[[float | None], bool], trials: int) -> Callable[[float | None], float]:
    return lambda epsilon: sum(right(epsilon) for _ in range(trials)) / trials


def _outcome(attack: str, chance: float, rate: Callable[[float | None], float]) -> Outcome:
    def advantage(epsilon: float | None) -> float:
        return round((rate(epsilon) - chance) / (1 - chance), 3)

    released = {epsilon: advantage(epsilon) for epsilon in EPSILONS}
    return Outcome(attack, chance, advantage(None), released)
