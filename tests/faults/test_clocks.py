"""Clocks that are ten minutes wrong, from the start or from one moment to the next."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from pathlib import Path

import pytest

from client_node.errors import LinkError
from client_node.home import SiteSettings
from client_node.service import run_site
from coordinator.job import JobLoop
from model_core.base import SpeechBase
from tests.client_node.fake_https import Authority, FakeCoordinator
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.coordinator.fakes import Federation, StepLink, request

pytestmark = pytest.mark.faults
TEN_MINUTES_S = 600.0


@pytest.mark.parametrize("jump_s", [TEN_MINUTES_S, -TEN_MINUTES_S], ids=["ahead", "back"])
def test_a_site_whose_clock_jumps_ten_minutes_trains_on_and_its_ledger_verifies(
    site: Site, coordinator: Coordinator, nano: SpeechBase, jump_s: float
) -> None:
    plan, basis = make_plan(nano)
    trainer = CountingTrainer()
    agent = site.agent(trainer)
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    first = agent.handle(coordinator.order(plan, 1))
    site.clock.now += datetime.timedelta(seconds=jump_s)
    assert agent.handle(coordinator.order(plan, 1)) == first
    assert agent.handle(coordinator.order(plan, 2)).kind == "update"
    agent = site.agent(trainer)  # started again
    assert agent.handle(coordinator.order(plan, 3)).kind == "update"
    state = site.books()[1].spent(plan.purpose)
    assert (trainer.draws, state.committed) == (3, 3)
    report = site.audit()
    assert report.valid, report.reason


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


def collecting(federation: Federation, link: StepLink) -> tuple[str, JobLoop]:
    """A job in its first round, in which west is not heard."""
    job = federation.operations.submit(request(rounds=1, deadline_s=60.0))
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).state == "preparing":
        loop.step()
        link.silent = {"west"}
    return job, loop


def test_a_coordinators_clock_ten_minutes_ahead_names_whom_it_cut_off_and_resumes(
    federation: Federation,
) -> None:
    link = StepLink(federation.sites)
    job, loop = collecting(federation, link)
    federation.clock.now_s += TEN_MINUTES_S
    while not loop.step():
        pass
    status = federation.operations.status(job)
    assert status.state == "abandoned"
    assert status.reason == "round 1 stayed below quorum: no answer from west"
    link.silent = set()
    federation.operations.resume(job)
    JobLoop(job, federation.tools, link).run(federation.clock.wait)
    status = federation.operations.status(job)
    assert (status.state, status.updates_admitted) == ("released", 3)
    assert federation.sites["east"].orders == [1]  # its update was kept


def test_a_coordinators_clock_ten_minutes_back_waits_longer_and_loses_nobody(
    federation: Federation,
) -> None:
    link = StepLink(federation.sites)
    job, loop = collecting(federation, link)
    federation.clock.now_s -= TEN_MINUTES_S
    started_s = federation.clock.now_s
    while federation.clock.now_s < started_s + TEN_MINUTES_S:
        assert not loop.step()  # the deadline is as far off as the clock went back
        federation.clock.wait(5.0)
    assert federation.tools.jobs.load(job).round.missing == ("west",)
    link.silent = set()
    loop = JobLoop(job, federation.tools, link)
    loop.run(federation.clock.wait)
    status = federation.operations.status(job)
    assert (status.state, status.updates_admitted) == ("released", 3)


@pytest.mark.parametrize("ahead_s", [TEN_MINUTES_S, -TEN_MINUTES_S], ids=["ahead", "behind"])
def test_a_site_ten_minutes_off_the_coordinators_clock_is_told_so_before_it_starts(
    site: Site, fake: FakeCoordinator, authority: Authority, ahead_s: float
) -> None:
    """Node authentication would answer 401, which looks like a revocation."""
    site.home.ca.write_text(authority.ca_pem)
    settings = SiteSettings.load(site.home.settings)
    dataclasses.replace(settings, coordinator_url=fake.url).save(site.home.settings)
    fake.ahead_s = ahead_s
    with pytest.raises(LinkError) as caught:
        run_site(site.home)
    assert caught.value.code == "clock-differs"
    assert ("behind" if ahead_s > 0 else "ahead of") in caught.value.problem
    assert "NTP" in caught.value.remedy
    assert fake.requests == []
