"""What the agent accepts and refuses, and that it says so with a code alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from sqlalchemy import text as sql

from model_core.base import SpeechBase
from privacy.merkle import MerkleTree
from privacy.parcel import Parcel, UpdateHeader
from privacy.plan import RoundPlan, TensorSpec
from privacy.receipt import read_parcel, read_receipts
from privacy.signing import Identity, open_as
from privacy.store import writing
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


def code_of(site: Site, reply: Parcel) -> str:
    assert reply.kind == "refused"
    assert reply.payload == b""
    return site.answer(reply).code


@pytest.fixture
def plan_and_basis(nano: SpeechBase) -> tuple[RoundPlan, bytes]:
    return make_plan(nano)


def test_a_job_runs_from_plan_to_update(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes], tmp_path: Path
) -> None:
    plan, basis = plan_and_basis
    agent = site.agent(CountingTrainer())
    answer = site.answer(agent.handle(coordinator.prepare(plan, basis)))
    assert (answer.code, answer.job, answer.subject_sha256) == ("ok", plan.job, plan.sha256)
    for round_ in (1, 2):
        update = agent.handle(coordinator.order(plan, round_))
        assert update.kind == "update"
        header = open_as(UpdateHeader, update.statement, (site.keys.identity.public,))
        assert (header.job, header.round, header.site) == (plan.job, round_, "north")
        assert header.plan_sha256 == plan.sha256
        assert header.payload_sha256 == update.payload_sha256
        assert header.size_bytes == len(update.payload) == 4 * plan.adapter.size
    report = site.audit()
    assert report.valid, report.reason
    ledger, budget = site.books()
    kinds = [entry.kind for entry in ledger.entries()]
    assert kinds == ["plan.accepted"] + 2 * ["budget.reserved", "round.trained", "update.sealed"]
    # The header's tree head covers the training it reports.
    trained = [e.index for e in ledger.entries() if e.kind == "round.trained"]
    assert header.tree_size == trained[-1] + 1
    state = budget.spent("drugs")
    assert (state.reserved, state.committed) == (0, 2)


def test_every_parcel_that_leaves_has_its_exact_receipt(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    agent = site.agent(CountingTrainer())
    asked = [
        coordinator.order(plan, 1),  # refused: the plan is unknown
        coordinator.prepare(plan, basis),
        coordinator.order(plan, 1),
    ]
    left = {agent.handle(parcel).statement: parcel for parcel in asked}
    kept = [read_parcel(site.home.receipts, r) for r in read_receipts(site.home.receipts)]
    assert {parcel.statement for parcel in kept} == set(left)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"sites": ("south", "east")}, "policy-site"),
        ({"base_sha256": "0" * 64}, "policy-base"),
        ({"purpose": "advertising"}, "policy-purpose"),
        ({"delta": 1e-5}, "policy-delta"),
        ({"noise_multiplier": 0.1}, "policy-noise"),
        ({"sites": ("north",)}, "policy-cohort"),
        ({"max_utterances_per_subject": 1000}, "policy-utterances"),
        ({"rounds": 100_000}, "budget-exceeded"),
    ],
)
def test_plan_against_policy_is_vetoed_before_any_training(
    site: Site, coordinator: Coordinator, nano: SpeechBase, changes: dict[str, object], code: str
) -> None:
    plan, basis = make_plan(nano, **changes)
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    assert code_of(site, agent.handle(coordinator.prepare(plan, basis))) == code
    assert code_of(site, agent.handle(coordinator.order(plan, 1))) == "plan-unknown"
    assert trainer.draws == 0
    assert site.books()[1].spent(plan.purpose).epsilon_loc == 0


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"kind": "lora", "basis_sha256": None}, "policy-adapter"),
        ({"rank": 500}, "policy-adapter"),
        ({"tensors": (TensorSpec("model.encoder.layers.0.fc1.core", (2, 2)),)}, "policy-adapter"),
        ({"tensors": (TensorSpec("decoder.core", (4096, 4096)),)}, "policy-upload"),
    ],
)
def test_adapter_outside_policy_is_vetoed(
    site: Site, coordinator: Coordinator, nano: SpeechBase, change: dict[str, object], code: str
) -> None:
    text = site.home.policy.read_text()
    site.home.policy.write_text(text.replace('["core", "lora"]', '["core"]'))
    plan, basis = make_plan(nano)
    plan = dataclasses.replace(plan, adapter=dataclasses.replace(plan.adapter, **change))
    basis = b"" if plan.adapter.basis_sha256 is None else basis
    reply = site.agent(CountingTrainer()).handle(coordinator.prepare(plan, basis))
    assert code_of(site, reply) == code


def test_unprotected_plan_needs_explicit_leave(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano, privacy_mode="none", noise_multiplier=0.0)
    agent = site.agent(CountingTrainer())
    assert site.answer(agent.handle(coordinator.prepare(plan, basis))).code == "ok"
    policy = site.home.policy.read_text()
    site.home.policy.write_text(policy.replace("unprotected = true", "unprotected = false"))
    # Also a plan accepted before: the policy rules at every round.
    agent = site.agent(CountingTrainer())
    assert code_of(site, agent.handle(coordinator.order(plan, 1))) == "policy-unprotected"


def test_all_vetoes_are_on_the_ledger_and_one_code_leaves(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano, delta=1e-5, noise_multiplier=0.01)
    reply = site.agent(CountingTrainer()).handle(coordinator.prepare(plan, basis))
    assert code_of(site, reply) == "policy-delta"
    (vetoed,) = [e for e in site.books()[0].entries() if e.kind == "plan.vetoed"]
    assert vetoed.fields["codes"] == ["policy-delta", "policy-noise"]


def test_only_the_pinned_coordinator_is_heard(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    stranger = Coordinator(Identity.generate())
    agent = site.agent(CountingTrainer())
    assert code_of(site, agent.handle(stranger.prepare(plan, basis))) == "signature-invalid"
    agent.handle(coordinator.prepare(plan, basis))
    assert code_of(site, agent.handle(stranger.order(plan, 1))) == "signature-invalid"


def test_parcels_that_do_not_fit_are_refused_by_code(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes], nano: SpeechBase
) -> None:
    plan, basis = plan_and_basis
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    prepare = coordinator.prepare(plan, basis)

    def refused(parcel: Parcel) -> str:
        return code_of(site, agent.handle(parcel))

    assert refused(dataclasses.replace(prepare, payload=basis + b"x")) == "payload-mismatch"
    assert refused(dataclasses.replace(prepare, kind="update")) == "parcel-invalid"
    assert refused(dataclasses.replace(prepare, kind="round")) == "statement-kind"
    assert refused(Parcel("round", b"no envelope")) == "statement-malformed"
    agent.handle(prepare)
    order = coordinator.order(plan, 2)
    assert refused(dataclasses.replace(order, payload=b"short")) == "payload-mismatch"
    assert refused(coordinator.order(plan, 1, vector=b"1234")) == "payload-mismatch"
    other, other_basis = make_plan(nano, clipping_norm=0.25)
    assert refused(coordinator.order(other, 1)) == "plan-mismatch"
    assert refused(coordinator.prepare(other, other_basis)) == "plan-mismatch"
    assert refused(coordinator.order(plan, plan.rounds + 1)) == "round-out-of-range"
    assert trainer.draws == 0
    assert agent.handle(order).kind == "update"
    assert refused(coordinator.order(plan, 1)) == "round-stale"
    another = bytes(4 * plan.adapter.size - 1) + b"\x3f"
    assert refused(coordinator.order(plan, 2, vector=another)) == "round-conflict"
    assert trainer.draws == 1


def test_coordinator_whose_ledger_shrank_is_refused(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    for _ in range(10):
        coordinator.grow()
    agent.handle(coordinator.order(plan, 1))
    coordinator.tree = MerkleTree()
    assert code_of(site, agent.handle(coordinator.order(plan, 2))) == "peer-head-smaller"
    for _ in range(10):
        coordinator.grow()
    # The same entries again, without the proof that the site needs, and then with it.
    bare = coordinator.order(plan, 2, proofs=())
    assert code_of(site, agent.handle(bare)) == "peer-head-unproven"
    assert agent.handle(coordinator.order(plan, 2)).kind == "update"


def test_coordinator_that_shows_another_history_is_refused(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    agent.handle(coordinator.order(plan, 1))
    coordinator.tree = MerkleTree()
    coordinator.tree.append(b"another history")
    for _ in range(2):  # what is refused leaves no trace that a second try could build on
        assert code_of(site, agent.handle(coordinator.order(plan, 2))) == "peer-head-split"
    assert trainer.draws == 1
    refused = [e for e in site.books()[0].entries() if e.kind == "parcel.refused"]
    assert [e.fields["code"] for e in refused] == 2 * ["peer-head-split"]


def test_a_release_without_proof_is_proved_by_the_next_order(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    agent.handle(coordinator.order(plan, 1))
    true_tree = coordinator.tree
    coordinator.tree = MerkleTree()
    coordinator.tree.append(b"entry 0")
    coordinator.tree.append(b"shown to this site alone")
    agent.handle(coordinator.release(plan, b"adapter"))
    coordinator.tree = true_tree
    for _ in range(4):
        coordinator.grow()
    assert code_of(site, agent.handle(coordinator.order(plan, 2))) == "peer-head-split"


def test_a_site_whose_own_ledger_was_cut_is_told_by_the_coordinator(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    size = site.books()[0].size
    assert agent.handle(coordinator.order(plan, 1, peer_size=size)).kind == "update"
    ahead = coordinator.order(plan, 2, peer_size=size + 100)
    assert code_of(site, agent.handle(ahead)) == "ledger-behind"


def test_budget_refuses_the_round_that_would_pass_the_cap(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    # Two jobs that fit alone and not together: the round is where the second is stopped.
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    plans = []
    for job in ("aa" * 8, "bb" * 8):
        plan, basis = make_plan(nano, job=job, sampling_rate=1.0, noise_multiplier=1.3, rounds=2)
        assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
        plans.append(plan)
    replies = [agent.handle(coordinator.order(p, r)) for p in plans for r in (1, 2)]
    kinds = [reply.kind for reply in replies]
    assert kinds[:2] == ["update", "update"]
    assert kinds[-1] == "refused"
    assert site.answer(replies[-1]).code == "budget-exceeded"
    state = site.books()[1].spent("drugs")
    assert state.epsilon_loc <= state.epsilon_cap
    assert trainer.draws == kinds.count("update") == state.committed


def test_exception_text_never_leaves(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    trainer.error = ValueError("patient-0451 /ward/3.wav take two tablets")
    reply = agent.handle(coordinator.order(plan, 1))
    assert code_of(site, reply) == "training-failed"
    everything = [reply.statement, *(p.read_bytes() for p in site.home.logs.rglob("*"))]
    everything += [path.read_bytes() for path in site.home.receipts.rglob("*")]
    assert not any(b"0451" in data or b"ward" in data or b"tablets" in data for data in everything)
    # Its budget stays spent, and the round is not drawn again.
    assert site.books()[1].spent("drugs").reserved == 1
    trainer.error = None
    assert code_of(site, agent.handle(coordinator.order(plan, 1))) == "round-interrupted"
    assert trainer.draws == 1


def test_tampered_ledger_stops_the_site(
    site: Site, coordinator: Coordinator, plan_and_basis: tuple[RoundPlan, bytes]
) -> None:
    plan, basis = plan_and_basis
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    with writing(site.engine()) as session:
        session.execute(sql("UPDATE ledger_log SET head = X'7B7D'"))
    assert code_of(site, agent.handle(coordinator.order(plan, 1))) == "ledger-invalid"
    assert agent.failure is not None
    assert trainer.draws == 0
