"""Crash anywhere in a round: spend is never under-counted, no round is drawn twice, and what was
sealed leaves again byte for byte (invariants I1, I2)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client_node import assembly
from client_node.outbox import Outbox
from model_core.base import SpeechBase
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.parcel import Parcel
from privacy.receipt import read_parcel, read_receipts
from tests.client_node.harness import Coordinator, CountingTrainer, Kill, Site, make_plan

STEPS: dict[str, tuple[object, str]] = {
    "reserve": (Budget, "reserve"),
    "train": (CountingTrainer, "train"),
    "ledger": (Ledger, "append"),
    "receipt": (assembly, "write_receipt"),
    "seal": (Outbox, "seal"),
    "commit": (Budget, "commit"),
    "settle": (Outbox, "settle"),
}


def die(patch: pytest.MonkeyPatch, step: str, when: str, after_calls: int = 0) -> None:
    """Kill the process before or after a step's real work, at its call number `after_calls`."""
    owner, name = STEPS[step]
    real: Callable[..., object] = getattr(owner, name)
    calls = 0

    def dying(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls <= after_calls:
            return real(*args, **kwargs)
        if when == "after":
            real(*args, **kwargs)
        raise Kill

    patch.setattr(owner, name, dying)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("step", "call"),
    [
        ("reserve", 0),
        ("ledger", 0),  # budget.reserved
        ("train", 0),
        ("ledger", 1),  # the private log's binding
        ("ledger", 2),  # round.trained
        ("receipt", 0),
        ("seal", 0),
        ("reserve", 1),  # found again to be committed
        ("commit", 0),
        ("ledger", 3),  # update.sealed
        ("settle", 0),
    ],
)
def test_crash_at_every_step(
    site: Site, coordinator: Coordinator, nano: SpeechBase, step: str, call: int, when: str
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    site.agent(trainer).handle(coordinator.prepare(plan, basis))
    order = coordinator.order(plan, 1)
    with pytest.MonkeyPatch.context() as patch:
        die(patch, step, when, call)
        agent = site.agent(trainer)
        with pytest.raises(Kill):
            agent.handle(order)
    drawn_before = trainer.draws
    sealed = Outbox(site.engine()).find(plan.job, 1)

    # Another process starts on the same home, and the coordinator repeats its order.
    agent = site.agent(trainer)
    reply = agent.handle(order)
    check_never_under_counted(site, plan.purpose, trainer.draws)
    assert trainer.draws <= 1
    if sealed is not None:
        assert reply == sealed.update
    elif drawn_before:
        assert site.answer(reply).code == "round-interrupted"
    # What leaves after all is what it says, and the next round runs.
    assert_receipt(site, reply)
    assert agent.handle(coordinator.order(plan, 2)).kind == "update"
    report = site.audit()
    assert report.valid, report.reason
    (derived,) = report.epsilons
    assert derived.epsilon_loc == pytest.approx(site.books()[1].spent("drugs").epsilon_loc)


def check_never_under_counted(site: Site, purpose: str, draws: int) -> None:
    state = site.books()[1].spent(purpose)
    assert state.reserved + state.committed >= draws
    assert state.epsilon_loc > 0 or draws == 0


def assert_receipt(site: Site, parcel: Parcel) -> None:
    folder = site.home.receipts
    kept = [read_parcel(folder, receipt) for receipt in read_receipts(folder)]
    assert parcel in kept


def test_a_repeated_order_gets_the_same_bytes_and_spends_once(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    first = agent.handle(coordinator.order(plan, 1))
    spent = site.books()[1].spent("drugs")
    # Signed anew after a coordinator's restart, with a later tree head, it is the same order.
    assert agent.handle(coordinator.order(plan, 1)) == first
    assert site.agent(trainer).handle(coordinator.order(plan, 1)) == first
    assert trainer.draws == 1
    assert site.books()[1].spent("drugs") == spent


@settings(
    max_examples=8,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_no_sequence_of_crashes_under_counts_or_draws_twice(
    tmp_path_factory: pytest.TempPathFactory, nano: SpeechBase, data: st.DataObject
) -> None:
    from privacy.signing import Identity

    coordinator = Coordinator(Identity.generate())
    site = Site(tmp_path_factory.mktemp("home") / "north", nano, coordinator)
    try:
        plan, basis = make_plan(nano)
        trainer = CountingTrainer()
        site.agent(trainer).handle(coordinator.prepare(plan, basis))
        seen: dict[int, Parcel] = {}
        for _ in range(data.draw(st.integers(1, 5))):
            round_ = data.draw(st.integers(1, plan.rounds))
            step = data.draw(st.sampled_from([None, *STEPS]))
            with pytest.MonkeyPatch.context() as patch:
                if step is not None:
                    when = data.draw(st.sampled_from(["before", "after"]))
                    die(patch, step, when, data.draw(st.integers(0, 2)))
                try:
                    reply = site.agent(trainer).handle(coordinator.order(plan, round_))
                except Kill:
                    continue
            if reply.kind == "update":
                assert seen.setdefault(round_, reply) == reply
        check_never_under_counted(site, plan.purpose, trainer.draws)
        assert trainer.draws <= plan.rounds
        assert site.audit().valid
    finally:
        site.close()
