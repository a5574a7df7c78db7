"""kill -9 of a site within a round: what was drawn counts, and what was sealed leaves unchanged."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path

import pytest

from client_node.outbox import Outbox
from model_core.base import SpeechBase
from privacy.parcel import Parcel
from privacy.plan import RoundPlan
from privacy.receipt import read_parcel, read_receipts
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.faults.failpoints import Fault, When, arm

pytestmark = pytest.mark.faults
ROUND = 1


def killed(site: Site, parcel: Parcel, step: str, when: When, *, train: bool = False) -> None:
    """Let a process of its own answer `parcel` and die at `step`."""
    fault = Fault(step, when, ROUND, site.home.root / "fired")

    def life() -> None:
        arm(fault, lambda: ROUND)
        site.agent(None if train else CountingTrainer()).handle(parcel)

    process = multiprocessing.get_context("fork").Process(target=life)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert fault.fired.exists()


def prepared(site: Site, coordinator: Coordinator, nano: SpeechBase) -> RoundPlan:
    """The site has accepted a plan, and nothing of its life before is left in this process."""
    plan, basis = make_plan(nano)
    assert site.agent(CountingTrainer()).handle(coordinator.prepare(plan, basis)).kind == "accepted"
    site.close()
    return plan


def assert_lost_and_counted(site: Site, coordinator: Coordinator, plan: RoundPlan) -> None:
    """The round counts as spent, is never drawn again, and the next round runs."""
    state = site.books()[1].spent(plan.purpose)
    assert (state.reserved, state.committed) == (1, 0)
    assert state.epsilon_loc > 0
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    refused = agent.handle(coordinator.order(plan, ROUND))
    assert (refused.kind, site.answer(refused).code) == ("refused", "round-interrupted")
    assert trainer.draws == 0
    assert agent.handle(coordinator.order(plan, ROUND + 1)).kind == "update"
    after = site.books()[1].spent(plan.purpose)
    assert (after.reserved, after.committed) == (1, 1)
    report = site.audit()
    assert report.valid, report.reason
    assert [one.reserved for one in report.epsilons] == [2]


def test_site_killed_mid_training_counts_the_round_as_spent_and_draws_it_no_more(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    for subject in range(4):
        site.record(f"person {subject}", "some words")
    plan = prepared(site, coordinator, nano)
    killed(site, coordinator.order(plan, ROUND), "site adds noise", "before", train=True)
    assert_lost_and_counted(site, coordinator, plan)


def test_site_killed_after_noise_before_it_is_sealed_counts_the_round_as_spent(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan = prepared(site, coordinator, nano)
    killed(site, coordinator.order(plan, ROUND), "site seals", "before")
    assert Outbox(site.engine()).find(plan.job, ROUND) is None
    assert_lost_and_counted(site, coordinator, plan)


@pytest.mark.parametrize(
    ("step", "when"),
    [("site seals", "after"), ("site commits", "after"), ("site settles", "after")],
)
def test_site_killed_after_sealing_before_sending_sends_the_same_bytes_and_spends_once(
    site: Site, coordinator: Coordinator, nano: SpeechBase, step: str, when: When
) -> None:
    plan = prepared(site, coordinator, nano)
    killed(site, coordinator.order(plan, ROUND), step, when)
    entry = Outbox(site.engine()).find(plan.job, ROUND)
    assert entry is not None
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    assert agent.handle(coordinator.order(plan, ROUND)) == entry.update
    assert trainer.draws == 0
    state = site.books()[1].spent(plan.purpose)
    assert (state.reserved, state.committed) == (0, 1)
    (receipt,) = [one for one in read_receipts(site.home.receipts) if one.kind == "update"]
    assert read_parcel(site.home.receipts, receipt) == entry.update
    assert site.audit().valid


def test_site_killed_when_its_receipt_is_written_keeps_the_receipt_and_counts_the_round(
    site: Site, coordinator: Coordinator, nano: SpeechBase, tmp_path: Path
) -> None:
    plan = prepared(site, coordinator, nano)
    killed(site, coordinator.order(plan, ROUND), "site keeps a receipt", "after")
    assert Outbox(site.engine()).find(plan.job, ROUND) is None  # the transaction was undone
    assert_lost_and_counted(site, coordinator, plan)
