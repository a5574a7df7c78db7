"""Another program holds the database's write lock: told in words, and nothing is lost."""

from __future__ import annotations

import datetime
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client_node.trainer import TrainedUpdate
from coordinator import service
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.job import JobLoop
from coordinator.service import Coordinator as Service
from model_core.base import SpeechBase
from privacy import store
from privacy.errors import StoreError
from privacy.plan import RoundPlan
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.coordinator.fakes import Federation, SmallArtifacts, StepLink, request

pytestmark = pytest.mark.faults
BUSY_TIMEOUT_MS = 50


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "BUSY_TIMEOUT_MS", BUSY_TIMEOUT_MS)


@contextmanager
def locked(database: Path) -> Iterator[None]:
    """Another program is in the middle of writing."""
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_site_whose_database_is_locked_draws_nothing_and_trains_once_it_is_free(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    order = coordinator.order(plan, 1)
    with locked(site.home.database), pytest.raises(StoreError) as caught:
        agent.handle(order)
    assert caught.value.code == "database-locked"
    assert trainer.draws == 0
    assert agent.handle(order).kind == "update"
    assert site.books()[1].spent(plan.purpose).committed == 1
    assert site.audit().valid


class LockedOut(CountingTrainer):
    """The lock is taken while the round is being trained."""

    def __init__(self, database: Path) -> None:
        super().__init__()
        self.lock = locked(database)

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        self.lock.__enter__()
        return super().train(plan, basis, round_, vector, arrivals)


def test_a_site_whose_database_is_locked_mid_round_counts_it_as_spent_and_goes_on(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    trainer = LockedOut(site.home.database)
    agent = site.agent(trainer)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    order = coordinator.order(plan, 1)
    with pytest.raises(StoreError):
        agent.handle(order)
    trainer.lock.__exit__(None, None, None)
    assert site.answer(agent.handle(order)).code == "round-interrupted"
    assert trainer.draws == 1
    agent = site.agent(CountingTrainer())
    assert agent.handle(coordinator.order(plan, 2)).kind == "update"
    state = site.books()[1].spent(plan.purpose)
    assert (state.reserved, state.committed) == (1, 1)
    assert site.audit().valid


def test_a_coordinator_whose_database_is_locked_stops_in_words_and_goes_on_at_the_next_start(
    tmp_path: Path,
) -> None:
    federation = Federation(tmp_path)
    job = federation.operations.submit(request(rounds=2))
    loop = JobLoop(job, federation.tools, StepLink(federation.sites))
    while federation.tools.jobs.load(job).rounds_done < 1:
        loop.step()
    with locked(tmp_path / "auricle.db"), pytest.raises(StoreError) as caught:
        loop.run(federation.clock.wait)
    assert caught.value.code == "database-locked"
    JobLoop(job, federation.tools, StepLink(federation.sites)).run(federation.clock.wait)
    status = federation.operations.status(job)
    assert (status.state, status.updates_admitted) == ("released", 6)
    federation.engine.dispose()


# flwr 1.41's own Alembic configuration warns under alembic 1.17.
@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")
def test_a_database_that_fails_stops_the_coordinators_service_and_abandons_no_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)
    home = CoordinatorHome.create(tmp_path, settings, datetime.datetime.now(datetime.UTC))

    class Failing:
        def __init__(self, *_: object) -> None:
            pass

        def run(self, _wait: object) -> None:
            raise StoreError("full", remedy="make room", code="database-full")

    abandoned: list[str] = []
    monkeypatch.setattr(service, "JobLoop", Failing)
    monkeypatch.setattr(service.Jobs, "unfinished", lambda _self: ["a job"])
    monkeypatch.setattr(service.Jobs, "abandon", lambda _self, job, *_: abandoned.append(job))
    running = Service(home, SmallArtifacts())
    running.start()
    running.wait(60.0)
    with pytest.raises(StoreError) as caught:
        running.stop()
    assert (caught.value.code, abandoned) == ("database-full", [])
