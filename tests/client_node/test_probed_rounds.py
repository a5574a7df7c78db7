"""A site whose probes fail sends a code alone; an auditor misses probes that are missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from client_node.noise_marks import StoredMarks
from model_core.base import SpeechBase
from privacy.ledger_events import MechanismRun, TrainedRound
from privacy.parcel import Parcel
from privacy.plan import PLAN_FORMAT_V1
from privacy.random_source import SystemRandomSource
from tests.client_node.harness import Coordinator, Site, make_plan

PASSED_FIELDS = {
    "suite": "auricle/probes/v1",
    "sensitivity": "passed",
    "alone-equals-in-batch": "passed",
    "noise": "passed",
    "sampler": "passed",
}


class Loud(SystemRandomSource):
    """Ten times the noise that the plan asks for."""

    name = "loud"

    def normal(self, size: int) -> torch.Tensor:
        return 10 * super().normal(size)


class Stuck(SystemRandomSource):
    """A sound law and sampler; but a new process draws the first one's noise again."""

    def __init__(self) -> None:
        self._draws = 0

    def normal(self, size: int) -> torch.Tensor:
        self._draws += 1
        generator = torch.Generator().manual_seed(self._draws)
        return torch.randn(size, generator=generator, dtype=torch.float64)


@pytest.fixture
def peopled(site: Site) -> Site:
    for name in ("ann", "ben", "cat"):
        site.record(name, f"{name} takes one tablet")
    return site


def round_of(
    site: Site, coordinator: Coordinator, nano: SpeechBase, source: object, round_: int = 1
) -> Parcel:
    plan, basis = make_plan(nano)
    agent = site.agent(source=source)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    return agent.handle(coordinator.order(plan, round_))


def test_every_round_has_its_receipt_on_the_ledger(
    peopled: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert round_of(peopled, coordinator, nano, SystemRandomSource()).kind == "update"
    ledger, _ = peopled.books()
    (entry,) = [entry for entry in ledger.entries() if entry.kind == "round.trained"]
    assert entry.fields["probes"] == PASSED_FIELDS
    assert peopled.audit().valid


def test_a_failed_probe_sends_a_code_alone_and_the_reservation_stands(
    peopled: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    reply = round_of(peopled, coordinator, nano, Loud())
    assert reply.kind == "refused"
    assert reply.payload == b""
    assert peopled.answer(reply).code == "probe-failed"
    ledger, budget = peopled.books()
    kinds = [entry.kind for entry in ledger.entries()]
    assert kinds == ["plan.accepted", "budget.reserved", "round.stopped", "parcel.refused"]
    stopped = next(entry for entry in ledger.entries() if entry.kind == "round.stopped")
    assert stopped.fields["probes"]["noise"] == "failed"
    assert "noise/variance" in stopped.fields["probes"]["failed"]
    assert budget.spent("drugs").epsilon_loc > 0
    assert not list(Path(peopled.home.receipts).glob("update-*"))
    assert peopled.audit().valid


def test_noise_of_an_earlier_process_is_not_sent_again(
    peopled: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    assert round_of(peopled, coordinator, nano, Stuck()).kind == "update"
    reply = round_of(peopled, coordinator, nano, Stuck(), round_=2)
    assert peopled.answer(reply).code == "probe-failed"


def test_marks_are_kept_under_one_secret_and_say_nothing_of_the_noise(peopled: Site) -> None:
    first, second = StoredMarks(peopled.engine()), StoredMarks(peopled.engine())
    assert first.key() == second.key()
    assert len(first.key()) == 32
    assert first.note(["a", "b"])
    assert not second.note(["b", "c"])
    assert not first.note(["c"])


@pytest.mark.parametrize(
    "probes", [{}, PASSED_FIELDS | {"noise": "failed"}, PASSED_FIELDS | {"suite": "none"}]
)
def test_an_auditor_misses_probes_from_the_second_plan_version_on(
    nano: SpeechBase, probes: dict[str, str]
) -> None:
    plan, _ = make_plan(nano)
    trained = TrainedRound(
        run=MechanismRun.from_plan(plan, 1, "north"),
        base_sha256=plan.base_sha256,
        epsilon_loc=1.0,
        epsilon_sec=1.0,
        honest_sites=1,
        random_source="os.urandom",
        code_version="0",
        accountant={},
        plan_format=plan.format,
        probes=PASSED_FIELDS,
    )
    fields = json.loads(json.dumps(trained.fields()))
    assert TrainedRound.from_fields(fields, "north") == trained
    with pytest.raises(ValueError, match="probe"):
        TrainedRound.from_fields(fields | {"probes": probes}, "north")
    before = {
        name: value for name, value in fields.items() if name not in ("probes", "plan_format")
    }
    assert TrainedRound.from_fields(before, "north").plan_format == PLAN_FORMAT_V1
