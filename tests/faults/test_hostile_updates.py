"""Three honest sites among hostile ones: the release is that of the three."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from coordinator.admission import HOSTILE_CODES
from coordinator.job import JobLoop
from coordinator.release import ADAPTER_FILE
from coordinator.status import JobStatus, job_status
from privacy.parcel import Parcel, RoundOrder
from privacy.signing import open_as
from tests.coordinator.fakes import FakeSite, Federation, StepLink, request
from tests.faults.hostile import BOMB, HOSTILE

pytestmark = pytest.mark.faults
HONEST = ("east", "north", "west")


class Adversary(FakeSite):
    """Sends the update named `hostile` in answer to every order; refuses them where it is ""."""

    hostile = ""

    def __call__(self, parcel: Parcel) -> Parcel:
        if parcel.kind != "round":
            return super().__call__(parcel)
        order = open_as(RoundOrder, parcel.statement, self.trusted)
        if not self.hostile:
            return self.answer("refused", order.job, order.payload_sha256, "training-failed")
        return HOSTILE[self.hostile].make(self, order)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What came of a job of one round, and who is in quarantine for what."""

    status: JobStatus
    released: bytes
    quarantined: dict[str, str | None]


def outcome_with(folder: Path, adversaries: dict[str, str]) -> Outcome:
    """A job of one round with the honest three and `adversaries`: name, and hostile update."""
    federation = Federation(folder, (*HONEST, *adversaries))
    for name, hostile in adversaries.items():
        federation.sites[name].__class__ = Adversary
        federation.sites[name].hostile = hostile
    job = federation.operations.submit(request(rounds=1, quorum=3))
    JobLoop(job, federation.tools, StepLink(federation.sites)).run(federation.clock.wait)
    status = job_status(federation.engine, job, ())
    assert status.release is not None
    released = (folder / "releases" / status.release / ADAPTER_FILE).read_bytes()
    quarantined = {site.site: site.quarantine_code for site in federation.operations.sites()}
    federation.engine.dispose()
    return Outcome(status, released, quarantined)


def test_three_sites_and_a_hostile_one_release_the_bytes_of_the_three(tmp_path: Path) -> None:
    quiet, loud = tmp_path / "quiet", tmp_path / "loud"
    quiet.mkdir()
    loud.mkdir()
    without, with_it = (
        outcome_with(folder, {"zulu": hostile})
        for folder, hostile in ((quiet, ""), (loud, "huge norm"))
    )
    assert with_it.status.latest_rounds[0].admitted == HONEST
    assert with_it.released == without.released


@pytest.fixture(scope="module")
def besieged(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """A round in which every hostile update of the catalogue arrives at once."""
    folder = tmp_path_factory.mktemp("besieged")
    return outcome_with(folder, {f"z-{n}": name for n, name in enumerate(HOSTILE)})


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    """The same round, in which those sites refuse to train instead."""
    folder = tmp_path_factory.mktemp("quiet")
    return outcome_with(folder, {f"z-{n}": "" for n, _ in enumerate(HOSTILE)})


@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_hostile_update_is_refused_by_its_code(besieged: Outcome, hostile: str) -> None:
    name, code = f"z-{list(HOSTILE).index(hostile)}", HOSTILE[hostile].code
    (round_,) = besieged.status.latest_rounds
    assert round_.refused[name] == code
    assert besieged.quarantined[name] == (code if code in HOSTILE_CODES else None)


def test_all_hostile_updates_together_leave_the_release_of_the_honest_three(
    besieged: Outcome, quiet: Outcome
) -> None:
    (round_,) = besieged.status.latest_rounds
    assert round_.admitted == HONEST
    assert len(round_.refused) == len(HOSTILE)
    assert [besieged.quarantined[name] for name in HONEST] == [None] * 3
    assert besieged.released == quiet.released
    assert not BOMB.exists()  # nothing was unpickled
