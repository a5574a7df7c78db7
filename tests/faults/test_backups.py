"""An older copy of a database put back: noticed, and nothing is trained on it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from client_node.agent import SiteAgent
from client_node.assembly import open_agent, open_parts
from client_node.site_log import SiteLog
from coordinator.job import JobLoop, Tools
from coordinator.status import JobStatus, job_status
from model_core.base import SpeechBase
from privacy.errors import BudgetError
from tests.client_node.harness import CountingTrainer, TickingClock
from tests.coordinator.fakes import FakeClock, FakeSite, StepLink
from tests.faults.federation import ADVERSARY, Place, found

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROUNDS = 5
SITES = ("east", "north")


class InProcess:
    """The parties of a federation on disk, each opened as often as a test wants."""

    def __init__(self, root: Path, nano: SpeechBase) -> None:
        self.job = found(root, nano, ROUNDS, SITES)
        self.place = Place(root)
        self.clock = FakeClock()
        self.trainers = {name: CountingTrainer() for name in SITES}
        self._closing = contextlib.ExitStack()

    def agent(self, name: str) -> SiteAgent:
        """A site's agent, as a new process of the site would open it."""
        home, clock = self.place.site(name), TickingClock()
        parts = open_parts(home)
        self._closing.callback(parts.store.engine.dispose)
        log = SiteLog(home.logs, clock)
        self._closing.callback(log.close)
        return open_agent(parts, log, clock, lambda _: self.trainers[name])

    def tools(self) -> tuple[Tools, Engine]:
        """The coordinator's tools, as its new process would open them."""
        tools, engine = self.place.tools(self.clock)
        self._closing.callback(engine.dispose)
        return tools, engine

    def run(self, rounds: int) -> JobStatus:
        """Open every party anew and run until `rounds` are done, or the job is finished.

        The order of the round after that has then gone out, and its answers are lost.
        """
        tools, engine = self.tools()
        quiet = FakeSite(ADVERSARY, tools.identity.public)
        sites = {name: self.agent(name).handle for name in SITES} | {ADVERSARY: quiet}
        link = StepLink(sites)
        link.silent = {ADVERSARY}
        loop = JobLoop(self.job, tools, link)
        tools.jobs.renew_deadline(self.job, self.clock())
        while tools.jobs.load(self.job).rounds_done < rounds and not loop.step():
            self.clock.wait(5.0)
        return job_status(engine, self.job, ())

    def close(self) -> None:
        """Close what is open, so that files may be put back."""
        self._closing.close()


@pytest.fixture
def parties(tmp_path: Path, nano: SpeechBase) -> Iterator[InProcess]:
    made = InProcess(tmp_path / "federation", nano)
    yield made
    made.close()


def put_back(backup: Path, home: Path) -> None:
    shutil.rmtree(home)
    shutil.copytree(backup, home)


def test_an_older_copy_of_a_sites_database_alone_is_refused_at_its_start(
    parties: InProcess, tmp_path: Path
) -> None:
    parties.run(1)
    parties.close()
    home = parties.place.site("north")
    backup = shutil.copy(home.database, tmp_path / "backup.db")
    parties.run(2)
    parties.close()
    shutil.copy(backup, home.database)
    with pytest.raises(BudgetError) as caught:
        parties.agent("north")
    assert caught.value.code == "budget-restored"


def test_an_older_copy_of_a_whole_site_is_noticed_and_trains_nothing(
    parties: InProcess, tmp_path: Path
) -> None:
    parties.run(1)
    parties.close()
    home = parties.place.site("north").root
    shutil.copytree(home, tmp_path / "backup")
    parties.run(3)
    parties.close()
    drawn = parties.trainers["north"].draws
    put_back(tmp_path / "backup", home)
    status = parties.run(4)
    assert status.latest_rounds[3].refused == {"north": "ledger-behind"}
    assert status.latest_rounds[3].admitted == ("east",)
    assert parties.trainers["north"].draws == drawn


def test_an_older_copy_of_the_coordinators_database_is_noticed_and_no_new_round_runs(
    parties: InProcess, tmp_path: Path
) -> None:
    """Rounds that sites have sealed are answered again, byte for byte; a new one is refused."""
    parties.run(1)
    parties.close()
    folder = parties.place.coordinator
    shutil.copytree(folder, tmp_path / "backup")
    assert parties.run(3).rounds_done == 3
    parties.close()
    drawn = {name: trainer.draws for name, trainer in parties.trainers.items()}
    assert drawn == dict.fromkeys(SITES, 4)
    put_back(tmp_path / "backup", folder)
    status = parties.run(ROUNDS)
    assert (status.state, status.rounds_done) == ("abandoned", 4)
    assert status.latest_rounds[-1].refused == dict.fromkeys(SITES, "peer-head-split")
    assert {name: trainer.draws for name, trainer in parties.trainers.items()} == drawn
