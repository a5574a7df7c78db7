"""A site on each engine, and what it knows of each person's spend and consent."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client_node.consent import withdraw_consent
from client_node.policy import SitePolicy
from client_node.spend import collect_spend
from client_node.status import collect_status
from model_core.base import SpeechBase
from privacy.ledger_verify import verify_with_private
from privacy.plan import RoundPlan
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


@pytest.fixture
def homed(tmp_path: Path, nano: SpeechBase, coordinator: Coordinator, url: str) -> Iterator[Site]:
    """A site on the engine of `url`."""
    made = Site(tmp_path / "north", nano, coordinator, url)
    yield made
    made.close()


class WatchingTrainer(CountingTrainer):
    """Says who could have been sampled in each round."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self._store = site.parts().store
        self.eligible: list[list[str]] = []

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> bytes:
        ids = self._store.trainable_subjects(arrivals)
        recordings = self._store.training_recordings(ids)
        self.eligible.append(sorted({one.text for some in recordings.values() for one in some}))
        return super().train(plan, basis, round_, vector, arrivals)


def cap_subjects(site: Site, epsilon: float) -> None:
    text = site.home.policy.read_text(encoding="utf-8")
    changed = text.replace("subject_epsilon = inf", f"subject_epsilon = {epsilon}")
    assert changed != text
    site.home.policy.write_text(changed, encoding="utf-8")


def test_a_site_trains_withdraws_and_is_audited(
    homed: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    homed.record("ann", "ann")
    homed.record("ben", "ben")
    plan, basis = make_plan(nano)
    trainer = WatchingTrainer(homed)
    agent = homed.agent(trainer)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"
    homed.record("cat", "cat")
    withdraw_consent("ann", homed.parts().store, homed.home.features, homed.private_log())
    agent = homed.agent(trainer)  # started again
    assert agent.handle(coordinator.order(plan, 2)).kind == "update"
    assert trainer.eligible == [["ann", "ben"], ["ben", "cat"]]

    spend = collect_spend(homed.home, subjects=True)
    ann, ben, cat = spend.subjects
    assert [line.subject for line in spend.subjects] == ["ann", "ben", "cat"]
    # Cat came after the first round and has spent less; ann is not sampled again.
    assert 0 < cat.epsilon < ben.epsilon == ann.epsilon
    assert not ann.consent
    assert ann.epsilon_next == ann.epsilon
    assert ben.epsilon_next is not None
    assert ben.epsilon_next > ben.epsilon
    assert spend.next_job == plan.job
    assert spend.overall[0].epsilon_loc == ben.epsilon
    assert collect_status(homed.home).budgets[0].epsilon_spent == ben.epsilon
    check_private_log(homed)


def check_private_log(site: Site) -> None:
    ledger, private = site.home.root / "ledger.jsonl", site.home.root / "private.jsonl"
    site.books()[0].export(ledger)
    log = site.private_log()
    log.export(private)
    kinds = [entry.kind for entry in log.entries()]
    assert kinds == ["round.bound", "consent.withdrawn", "round.bound"]
    report, own = verify_with_private(ledger, private, [site.keys.identity.public])
    assert (report.valid, own.valid) == (True, True), (report.reason, own.reason)


def test_who_has_spent_their_cap_is_left_out_and_who_came_later_is_not(
    homed: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    homed.record("ann", "ann")
    plan, basis = make_plan(nano)
    budget = homed.books()[1]
    once = budget.subject_epsilon(0, plan)
    cap_subjects(homed, once * 1.01)  # one round each
    assert SitePolicy.load(homed.home.policy).caps.subject == once * 1.01
    trainer = WatchingTrainer(homed)
    agent = homed.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    agent.handle(coordinator.order(plan, 1))
    homed.record("ben", "ben")
    agent.handle(coordinator.order(plan, 2))
    agent.handle(coordinator.order(plan, 3))
    assert trainer.eligible == [["ann"], ["ben"], []]
    spend = collect_spend(homed.home, subjects=True)
    # Rounds count against a person who was here, sampled or not: never under-counted.
    assert all(line.epsilon >= once for line in spend.subjects)
    assert all(line.epsilon_next == line.epsilon for line in spend.subjects)
