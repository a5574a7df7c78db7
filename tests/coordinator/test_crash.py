"""kill -9 at every commit of a job: each life of the coordinator gets one transaction further."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal

import pytest
from sqlalchemy import event

from coordinator.job import JobLoop
from coordinator.release import ADAPTER_FILE
from coordinator.status import job_status
from tests.coordinator.fakes import Federation, StepLink, make_tools, request

COMMITS_PER_LIFE = 1


def live(folder, federation, job, commits=None) -> None:
    """Run `job` in `folder`; kill this process before commit number `commits` + 1."""
    tools, engine = make_tools(folder, federation.identity, federation.clock)
    loop = JobLoop(job, tools, StepLink(federation.sites))
    tools.jobs.renew_deadline(job, federation.clock())
    done = 0

    def count(_connection) -> None:
        nonlocal done
        if done == commits:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    event.listen(engine, "commit", count)
    while not loop.step():
        federation.clock.wait(0.05)
    engine.dispose()


@pytest.fixture
def started(tmp_path):
    """A federation with a job planned, and nothing of it begun."""
    folder = tmp_path / "killed"
    folder.mkdir()
    federation = Federation(folder)
    job = federation.operations.submit(request(rounds=2))
    plan = federation.tools.jobs.load(job).plan
    for site in federation.sites.values():
        site.plans[job] = plan  # sites outlive the coordinator
    federation.engine.dispose()
    shutil.copytree(folder, tmp_path / "spared")
    return federation, job


def outcome(folder, federation, job):
    tools, engine = make_tools(folder, federation.identity, federation.clock)  # verifies the ledger
    status = job_status(engine, job, ())
    weights = tools.jobs.checkpoint(job).weights
    entries = tools.journal.ledger.entries()
    engine.dispose()
    released = (folder / "releases" / status.release / ADAPTER_FILE).read_bytes()
    return status, weights, released, entries


def test_killed_at_every_commit_a_job_ends_in_the_same_bytes(started, tmp_path):
    federation, job = started
    live(tmp_path / "spared", federation, job)
    fork = multiprocessing.get_context("fork")
    lives = 0
    while True:
        arguments = (tmp_path / "killed", federation, job, COMMITS_PER_LIFE)
        child = fork.Process(target=live, args=arguments)
        child.start()
        child.join()
        lives += 1
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        assert lives < 500

    spared_status, spared_weights, spared_release, spared_entries = outcome(
        tmp_path / "spared", federation, job
    )
    status, weights, release, entries = outcome(tmp_path / "killed", federation, job)
    assert lives > 20
    assert (status.state, status.updates_admitted) == ("released", 6)
    assert weights == spared_weights
    assert release == spared_release
    assert status.release == spared_status.release
    # Every event is on the ledger exactly once, in order, however often delivery was cut short.
    numbers = [entry.fields["event"] for entry in entries]
    assert numbers == list(range(1, len(spared_entries) + 1))
    assert [e.kind for e in entries] == [e.kind for e in spared_entries]
