"""A job under replace-one adjacency, from its request to a ledger that verifies."""

from __future__ import annotations

import dataclasses

import pytest

from coordinator.planning import guarantees
from coordinator.planning import make_plan as planned
from model_core.base import SpeechBase
from privacy.accountant import ADJACENCIES, MechanismEvent, epsilon
from privacy.errors import PlanError
from privacy.plan import RoundPlan
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.coordinator.fakes import SmallArtifacts, request


def test_a_site_spends_and_its_ledger_states_what_replace_one_costs(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano, adjacency="replace_one", noise_multiplier=4.0)
    agent = site.agent(CountingTrainer())
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    for round_ in (1, 2):
        assert agent.handle(coordinator.order(plan, round_)).kind == "update"
    events = [MechanismEvent(plan.sampling_rate, 4.0, 2, "replace_one")]
    expected = epsilon(events, plan.delta)
    assert expected > 1.2 * epsilon(
        [dataclasses.replace(events[0], adjacency=ADJACENCIES[0])], plan.delta
    )
    assert site.books()[1].spent(plan.purpose).epsilon_loc == pytest.approx(expected, rel=1e-7)
    report = site.audit()
    assert report.valid, report.reason
    assert report.epsilons[0].epsilon_loc == pytest.approx(expected, rel=1e-7)


def test_a_request_is_calibrated_for_its_adjacency() -> None:
    def of(adjacency: str) -> RoundPlan:
        asked = request(noise_multiplier=None, epsilon=4.0, rounds=30, adjacency=adjacency)
        artifacts = SmallArtifacts().prepare(None, None)
        return planned(asked, artifacts, ("a", "b"), job="ab" * 8, issued_at_s=1.8e9)

    added, replaced = (of(adjacency) for adjacency in ADJACENCIES)
    assert replaced.adjacency == "replace_one"
    assert replaced.noise_multiplier > added.noise_multiplier
    assert 3.9 < guarantees(replaced, 30)[0] <= 4.0
    assert RoundPlan.from_json(replaced.to_json()) == replaced


def test_an_unknown_adjacency_is_no_plan(nano: SpeechBase) -> None:
    with pytest.raises(PlanError):
        make_plan(nano, adjacency="replace_special")
