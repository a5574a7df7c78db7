"""Plans that a site must not train: refused by a code, before anything is sampled or reserved."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import rfc8785

from model_core.base import SpeechBase
from privacy.parcel import Parcel
from privacy.plan import RoundPlan
from privacy.signing import payload_type_of, seal_statement
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan

pytestmark = pytest.mark.faults


class Untouched(CountingTrainer):
    """A trainer that nothing of may be asked before the plan is agreed to."""

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        raise AssertionError("the plan reached the trainer")


def assert_vetoed(
    site: Site, coordinator: Coordinator, nano: SpeechBase, fields: dict[str, Any], code: str
) -> None:
    """A rightly signed plan with `fields` is refused by `code`, and so is an order under it."""
    plan, basis = make_plan(nano)
    changed = json.loads(json.dumps(dataclasses.asdict(plan))) | fields
    kind = payload_type_of(RoundPlan)
    statement = seal_statement(rfc8785.dumps(changed), kind, coordinator.identity)
    trainer = Untouched()
    agent = site.agent(trainer)
    reply = agent.handle(Parcel("prepare", statement, basis))
    assert (reply.kind, site.answer(reply).code) == ("refused", code)
    ordered = agent.handle(coordinator.order(plan, 1))
    assert site.answer(ordered).code == "plan-unknown"
    assert trainer.draws == 0
    ledger, budget = site.books()
    assert budget.spent(plan.purpose).epsilon_loc == 0
    kinds = {entry.kind for entry in ledger.entries()}
    assert kinds <= {"plan.vetoed", "parcel.refused"}
    assert agent.failure is None


@pytest.mark.parametrize("mode", ["local-noise", "none"])
def test_a_plan_of_sigma_zero_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase, mode: str
) -> None:
    policy = site.home.policy.read_text()
    site.home.policy.write_text(policy.replace("unprotected = true", "unprotected = false"))
    fields = {"noise_multiplier": 0, "privacy_mode": mode}
    code = "plan-invalid" if mode == "local-noise" else "policy-unprotected"
    assert_vetoed(site, coordinator, nano, fields, code)


@pytest.mark.parametrize("clipping_norm", [1e6, 1e300, 0, -1, "Infinity"])
def test_a_plan_of_a_huge_or_impossible_clipping_norm_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase, clipping_norm: object
) -> None:
    assert_vetoed(site, coordinator, nano, {"clipping_norm": clipping_norm}, "plan-invalid")


def test_a_plan_for_a_cohort_of_one_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert_vetoed(site, coordinator, nano, {"sites": ["north"]}, "policy-cohort")


def test_a_plan_that_would_pass_the_cap_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert_vetoed(site, coordinator, nano, {"rounds": 100_000}, "budget-exceeded")


def test_a_plan_of_too_little_noise_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert_vetoed(site, coordinator, nano, {"noise_multiplier": 0.29}, "policy-noise")


def test_a_plan_of_a_wrong_base_hash_is_vetoed_before_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert_vetoed(site, coordinator, nano, {"base_sha256": "0" * 64}, "policy-base")


def test_an_order_of_a_wrong_plan_hash_is_refused_and_reserves_nothing(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    other = dataclasses.replace(plan, clipping_norm=plan.clipping_norm / 2)
    reply = agent.handle(coordinator.order(other, 1))
    assert site.answer(reply).code == "plan-mismatch"
    assert trainer.draws == site.books()[1].spent(plan.purpose).epsilon_loc == 0
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"


def test_an_order_after_the_cap_was_lowered_is_refused_and_reserves_nothing(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    assert site.agent(trainer).handle(coordinator.prepare(plan, basis)).kind == "accepted"
    policy = site.home.policy.read_text()
    site.home.policy.write_text(policy.replace("drugs = 8.0", "drugs = 0.01"))
    reply = site.agent(trainer).handle(coordinator.order(plan, 1))
    assert site.answer(reply).code == "budget-exceeded"
    assert trainer.draws == site.books()[1].spent(plan.purpose).epsilon_loc == 0
