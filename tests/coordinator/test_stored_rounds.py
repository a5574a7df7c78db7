"""The pure round logic against the real store, through any interleaving of events and crashes.

The model is `coordinator.rounds.advance` over values in memory; the store must agree with it after
every step, whatever was killed on the way. Each run has its own database; PostgreSQL's is slow.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import event, select

from coordinator.errors import RoundError
from coordinator.job_records import ADMITTED, Checkpoint
from coordinator.jobs import Jobs, NewJob
from coordinator.optimiser import OptimiserState
from coordinator.planning import make_plan
from coordinator.rounds import (
    OK,
    Aggregated,
    ClockRead,
    Event,
    OrdersSent,
    Reopened,
    RoundState,
    SiteRefused,
    UpdateAdmitted,
    advance,
)
from coordinator.store import JournalRow, RoundRow, UpdateRow, create_schema
from privacy.parcel import UpdateHeader
from privacy.store import open_engine, reading
from tests.coordinator.fakes import HEAD, SPEC, SmallArtifacts, request

JOB = "ab" * 8
SITES = ("a", "b", "c", "d")
ROUNDS = 3
DEADLINE_S = 60.0


class PowerCutError(Exception):
    """Raised where the process would be gone: nothing of the transaction is committed."""


class StoredRounds(RuleBasedStateMachine):
    """A job's rounds in a database, and the same rounds in memory."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url
        self.engine = open_engine(url)
        create_schema(self.engine)
        self.jobs = Jobs(self.engine)
        self.now_s = 1000.0
        self.model: RoundState | None = None
        self.done = 0
        self.released: dict[int, object] = {}
        self.answers = 0
        self.abandoned: list[tuple[list[str], dict[str, str]]] = []

    @initialize(quorum=st.integers(1, len(SITES)))
    def plan(self, quorum: int) -> None:
        artifacts = SmallArtifacts().prepare(None, None)
        asked = request(rounds=ROUNDS, quorum=quorum, deadline_s=DEADLINE_S)
        plan = make_plan(asked, artifacts, set(SITES), job=JOB, issued_at_s=self.now_s)
        state = OptimiserState.initial(SPEC.size).to_bytes()
        start = np.zeros(SPEC.size, np.float32).tobytes()
        self.quorum = quorum
        self.jobs.create(NewJob(asked, plan, b"{}", Checkpoint(b"", start, state)), self.now_s)
        for site in SITES:
            self.jobs.answer_plan(JOB, site, OK)
        self.jobs.start_if_ready(JOB, self.now_s)
        self.open()

    def open(self) -> None:
        number = self.done + 1
        self.jobs.open_round(JOB, number, frozenset(SITES), b"order", now_s=self.now_s)
        deadline_s = self.now_s + DEADLINE_S
        self.model = RoundState(number, frozenset(SITES), self.quorum, deadline_s)

    def take(self, happened: Event, transition: Callable[[], None], cut: bool) -> None:
        """Make `transition` in store and model, or neither; `cut` ends it before its commit."""
        after = self.expected(happened)
        if isinstance(after, RoundError):
            with pytest.raises(RoundError) as caught:
                transition()
            assert caught.value.code == after.code
            return
        if cut:
            event.listen(self.engine, "commit", _cut)
            try:
                with pytest.raises(PowerCutError):
                    transition()
            finally:
                event.remove(self.engine, "commit", _cut)
            self.restart()
            return
        transition()
        self.answers += isinstance(happened, UpdateAdmitted | SiteRefused)
        if after.status == "abandoned" != self.model.status:
            self.abandoned.append((list(after.missing), dict(sorted(after.refused))))
        self.model = after

    def expected(self, happened: Event) -> RoundState | RoundError:
        try:
            return advance(self.model, happened)
        except RoundError as error:
            return error

    @rule()
    def restart(self) -> None:
        """kill -9 between two transactions, and a new process."""
        self.engine.dispose()
        self.engine = open_engine(self.url)
        create_schema(self.engine)
        self.jobs = Jobs(self.engine)

    @rule(cut=st.booleans())
    def send_orders(self, cut: bool) -> None:
        number = self.model.number
        self.take(OrdersSent(), lambda: self.jobs.orders_sent(JOB, number), cut)

    @rule(site=st.sampled_from(SITES), cut=st.booleans())
    def admit(self, site: str, cut: bool) -> None:
        number = self.model.number
        payload = np.full(SPEC.size, ord(site) + number, np.float32).tobytes()
        digest = f"{site}{number}"
        header = UpdateHeader(JOB, number, site, "0" * 64, digest, len(payload), **HEAD)

        def transition() -> None:
            self.jobs.admit(JOB, number, site, header, payload, now_s=self.now_s)

        self.take(UpdateAdmitted(site), transition, cut)

    @rule(site=st.sampled_from(SITES), cut=st.booleans())
    def refuse(self, site: str, cut: bool) -> None:
        number = self.model.number

        def transition() -> None:
            self.jobs.refuse(JOB, number, site, "norm-exceeded", now_s=self.now_s)

        self.take(SiteRefused(site, "norm-exceeded"), transition, cut)

    @rule(step_s=st.floats(0, 1.5 * DEADLINE_S), cut=st.booleans())
    def read_clock(self, step_s: float, cut: bool) -> None:
        self.now_s += step_s
        number, now_s = self.model.number, self.now_s
        self.take(ClockRead(now_s), lambda: self.jobs.read_clock(JOB, number, now_s), cut)

    @precondition(lambda self: self.model.status == "aggregating")
    @rule(cut=st.booleans())
    def checkpoint(self, cut: bool) -> None:
        """The release of a round: what it summed is what the model admitted."""
        number = self.model.number
        total = sum(np.frombuffer(one, np.float32) for one in self.jobs.payloads(JOB, number))
        assert total[0] == sum(ord(site) + number for site in self.model.admitted)
        weights, state = np.float32(total).tobytes(), OptimiserState.initial(SPEC.size).to_bytes()

        def transition() -> None:
            self.jobs.finish_round(JOB, number, weights, state, facts={}, now_s=self.now_s)

        self.take(Aggregated(), transition, cut)
        if self.model.status == "released":
            self.done = number
            self.released[number] = (self.stored(number), weights)
            assert self.jobs.checkpoint(JOB).weights == weights

    @precondition(lambda self: self.model.status == "released" and self.done < ROUNDS)
    @rule()
    def open_next(self) -> None:
        self.open()

    @precondition(lambda self: self.model.status == "abandoned")
    @rule(cut=st.booleans())
    def resume(self, cut: bool) -> None:
        now_s = self.now_s
        self.take(Reopened(now_s + DEADLINE_S), lambda: self.jobs.resume(JOB, now_s), cut)

    def stored(self, number: int) -> object:
        """Everything that the database says of a round."""
        answered = select(UpdateRow).where(UpdateRow.number == number).order_by(UpdateRow.site)
        with reading(self.engine) as session:
            row = session.get_one(RoundRow, (JOB, number))
            return (
                (row.status, row.attempt, row.sites_json, row.deadline_at, row.closed_at),
                [
                    (one.site, one.code, one.payload_sha256, one.received_at, one.payload)
                    for one in session.scalars(answered)
                ],
            )

    def events(self, kind: str) -> list[dict]:
        query = select(JournalRow.fields_json).where(JournalRow.kind == kind)
        with reading(self.engine) as session:
            rows = session.scalars(query.order_by(JournalRow.sequence))
            return [json.loads(fields) for fields in rows]

    @invariant()
    def the_store_agrees_with_the_model(self) -> None:
        if self.model is None:
            return
        found = self.jobs.load(JOB).round
        # In which order sites refused is not the state's business; the store orders by arrival.
        assert dataclasses.replace(found, refused=tuple(sorted(found.refused))) == (
            dataclasses.replace(self.model, refused=tuple(sorted(self.model.refused)))
        )

    @invariant()
    def an_update_counts_at_most_once(self) -> None:
        told = [e for e in self.events("update.answered") if e["code"] == ADMITTED]
        named = [(e["round"], e["site"]) for e in told]
        assert len(set(named)) == len(named)
        assert len(self.events("update.answered")) == self.answers

    @invariant()
    def a_released_round_never_changes(self) -> None:
        for number, (rows, weights) in self.released.items():
            assert self.stored(number) == rows
            if number == self.done:
                assert self.jobs.checkpoint(JOB).weights == weights

    @invariant()
    def rounds_close_with_their_quorum_and_name_who_is_missing(self) -> None:
        for told in self.events("round.aggregated"):
            assert len(told["admitted"]) >= self.quorum
            assert set(told["admitted"] + told["missing"]) <= set(SITES)
            assert not set(told["admitted"]) & set(told["missing"])
        told = [(e["missing"], e["refused"]) for e in self.events("job.abandoned")]
        assert told == self.abandoned

    def teardown(self) -> None:
        self.engine.dispose()


def _cut(_connection: object) -> None:
    raise PowerCutError


def explore(new_url: Callable[[], str], examples: int) -> None:
    run_state_machine_as_test(
        lambda: StoredRounds(new_url()),
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_rounds_in_sqlite_are_those_of_the_pure_machine() -> None:
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))
        explore(lambda: f"sqlite:///{Path(folder) / f'{next(numbers)}.db'}", 8)


@pytest.mark.slow
def test_rounds_in_sqlite_are_those_of_the_pure_machine_at_length() -> None:
    with tempfile.TemporaryDirectory() as folder:
        numbers = iter(range(10**6))
        explore(lambda: f"sqlite:///{Path(folder) / f'{next(numbers)}.db'}", 300)


@pytest.mark.slow
def test_rounds_in_postgresql_are_those_of_the_pure_machine(new_postgres) -> None:
    explore(new_postgres, 30)
