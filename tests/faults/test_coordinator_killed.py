"""kill -9 of the coordinator at each stage of a round: the job ends in the same bytes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from coordinator.job import JobLoop
from coordinator.release import ADAPTER_FILE, MANIFEST_FILE
from coordinator.status import JobStatus, job_status
from privacy.ledger_verify import verify_export
from privacy.parcel import ReleaseManifest
from privacy.signing import open_as
from tests.coordinator.fakes import Federation, StepLink, make_tools, request
from tests.faults.failpoints import Fault, When, arm

pytestmark = pytest.mark.faults
ROUNDS = 2


@dataclasses.dataclass(frozen=True)
class Started:
    """A job, planned and not begun, in `folder`; and what it ends in where nobody is killed."""

    federation: Federation
    job: str
    folder: Path


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Started:
    folder = tmp_path_factory.mktemp("started")
    federation = Federation(folder)
    job = federation.operations.submit(request(rounds=ROUNDS))
    plan = federation.tools.jobs.load(job).plan
    for site in federation.sites.values():
        site.plans[job] = plan  # sites outlive the coordinator
    federation.engine.dispose()
    return Started(federation, job, folder)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Status, released bytes and the kinds of the ledger's entries, all of them verified."""

    status: JobStatus
    released: bytes
    kinds: list[str]


@pytest.fixture(scope="module")
def spared(started: Started, tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same job where nobody is killed."""
    folder = tmp_path_factory.mktemp("spared")
    shutil.copytree(started.folder, folder, dirs_exist_ok=True)
    assert in_a_process(folder, started, None) == 0
    return outcome(folder, started)


def life(folder: Path, started: Started, fault: Fault | None) -> None:
    """One life of the coordinator's process over the database in `folder`."""
    federation, job = started.federation, started.job
    tools, engine = make_tools(folder, federation.identity, federation.clock)
    if fault is not None:
        arm(fault, lambda: tools.jobs.load(job).rounds_done + 1)
    loop = JobLoop(job, tools, StepLink(federation.sites))
    tools.jobs.renew_deadline(job, federation.clock())
    while not loop.step():
        federation.clock.wait(0.5)
    engine.dispose()


def in_a_process(folder: Path, started: Started, fault: Fault | None) -> int | None:
    process = multiprocessing.get_context("fork").Process(
        target=life, args=(folder, started, fault)
    )
    process.start()
    process.join()
    return process.exitcode


def outcome(folder: Path, started: Started) -> Outcome:
    """What lies in `folder` once the job has ended."""
    federation = started.federation
    tools, engine = make_tools(folder, federation.identity, federation.clock)
    status = job_status(engine, started.job, ())
    assert status.release is not None
    released = folder / "releases" / status.release
    statement = (released / MANIFEST_FILE).read_bytes()
    manifest = open_as(ReleaseManifest, statement, (federation.identity.public,))
    assert manifest.release == status.release
    kinds = [entry.kind for entry in tools.journal.ledger.entries()]
    tools.journal.ledger.export(folder / "export.jsonl")
    report = verify_export(folder / "export.jsonl", [federation.identity.public])
    assert report.valid, report.reason
    engine.dispose()
    assert not list(released.glob("*.part*"))  # no half-written file is left
    return Outcome(status, (released / ADAPTER_FILE).read_bytes(), kinds)


Dies = Callable[[str, When, int], None]


@pytest.fixture
def dies_and_ends_in_the_same_bytes(started: Started, spared: Outcome, tmp_path: Path) -> Dies:
    """Kill the coordinator at a step, start it again, and hold it against the spared one."""

    def check(step: str, when: When, round_: int) -> None:
        folder = tmp_path / "killed"
        shutil.copytree(started.folder, folder)
        fault = Fault(step, when, round_, tmp_path / "fired")
        assert in_a_process(folder, started, fault) == -signal.SIGKILL
        assert fault.fired.exists()
        assert in_a_process(folder, started, None) == 0
        after = outcome(folder, started)
        assert (after.status.state, after.status.updates_admitted) == ("released", 3 * ROUNDS)
        assert [site.release_code for site in after.status.sites] == ["ok"] * 3
        assert after.released == spared.released
        assert after.status.release == spared.status.release
        assert after.kinds == spared.kinds  # each event once, in the same order

    return check


def test_coordinator_killed_between_rounds_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator opens a round", "before", 2)


def test_coordinator_killed_while_collecting_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator admits", "after", 2)


def test_coordinator_killed_mid_aggregation_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator reads updates", "after", 2)


def test_coordinator_killed_before_the_checkpoint_commits_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator checkpoints", "before", 2)


def test_coordinator_killed_before_the_signed_release_commits_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator begins a release", "before", ROUNDS + 1)


def test_coordinator_killed_between_release_write_and_commit_releases_the_same_bytes(
    dies_and_ends_in_the_same_bytes: Dies,
) -> None:
    dies_and_ends_in_the_same_bytes("coordinator writes release files", "after", ROUNDS + 1)
