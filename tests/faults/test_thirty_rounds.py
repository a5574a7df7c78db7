"""A fault in every round, and the release is what it would have been without them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client_node.keys import load_keys
from client_node.policy import SitePolicy
from coordinator.release import ADAPTER_FILE
from coordinator.status import JobStatus, job_status
from model_core.base import SpeechBase
from privacy.accountant import MechanismEvent, epsilon
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.ledger_verify import verify_export
from privacy.signing import PublicIdentity
from privacy.store import open_engine
from tests.client_node.harness import TickingClock
from tests.faults.federation import ADVERSARY, SITES, Place, Script, aggregated, found, run
from tests.faults.hostile import HOSTILE
from tests.faults.schedule import Schedule, draw

pytestmark = pytest.mark.faults


def test_a_fault_in_each_of_four_rounds_changes_no_released_byte_and_hides_no_epsilon(
    tmp_path: Path, nano: SpeechBase
) -> None:
    survives(tmp_path, nano, rounds=4, seed=5)


@pytest.mark.slow
def test_a_fault_in_each_of_thirty_rounds_changes_no_released_byte_and_hides_no_epsilon(
    tmp_path: Path, nano: SpeechBase
) -> None:
    survives(tmp_path, nano, rounds=30, seed=1)


def survives(folder: Path, nano: SpeechBase, rounds: int, seed: int) -> None:
    """Run a job with a fault in each round, and again with none but the same sites' updates."""
    faulty, spared = Place(folder / "faulty"), Place(folder / "spared")
    job = found(faulty.root, nano, rounds)
    shutil.copytree(faulty.root, spared.root)
    schedule = draw(faulty, rounds, seed)
    print("\n".join(schedule.told))  # noqa: T201 - shown where the test fails
    assert run(faulty.root, job, schedule.script) == schedule.kills
    assert set(faulty.happened) == schedule.fired

    absent = {round_: frozenset({site}) for round_, site in schedule.lost.items()}
    assert run(spared.root, job, Script(absent=absent)) == 0
    assert_same_release(faulty, spared, job, schedule, rounds)
    for site in SITES:
        assert_no_epsilon_is_hidden(faulty, site, rounds, schedule)


def assert_same_release(
    faulty: Place, spared: Place, job: str, schedule: Schedule, rounds: int
) -> None:
    outcomes = [outcome(place, job) for place in (faulty, spared)]
    for status, steps, _ in outcomes:
        assert (status.state, status.rounds_done) == ("released", rounds)
        for round_ in range(1, rounds + 1):
            assert steps[round_]["admitted"] == [
                site for site in SITES if schedule.lost.get(round_) != site
            ]
    (_, steps, released), (_, spared_steps, spared_released) = outcomes
    weights = [steps[round_]["weights_sha256"] for round_ in range(1, rounds + 1)]
    assert weights == [spared_steps[r]["weights_sha256"] for r in range(1, rounds + 1)]
    assert len(set(weights)) == rounds
    assert released == spared_released


def outcome(place: Place, job: str) -> tuple[JobStatus, dict[int, dict[str, object]], bytes]:
    """The job's status, its rounds, and the released bytes; its ledger verifies."""
    tools, engine = place.tools()
    try:
        status = job_status(engine, job, ())
        steps = aggregated(tools)
        assert_verifies(place.root, tools.journal.ledger, tools.identity.public)
        assert status.release is not None
        adapter = tools.releases_folder / status.release / ADAPTER_FILE
        hostile = {e.fields["code"] for e in tools.journal.ledger.entries() if _hostile(e)}
        assert hostile <= {one.code for one in HOSTILE.values()} | {"training-failed"}
        return status, steps, adapter.read_bytes()
    finally:
        engine.dispose()


def _hostile(entry: object) -> bool:
    fields, kind = entry.fields, entry.kind  # type: ignore[attr-defined]
    return bool(kind == "update.answered" and fields["site"] == ADVERSARY)


def assert_no_epsilon_is_hidden(place: Place, name: str, rounds: int, schedule: Schedule) -> None:
    """The site's ledger verifies, and counts every round for which noise was drawn, once."""
    home = place.site(name)
    engine = open_engine(home.database_url)
    identity, clock = load_keys(home).identity, TickingClock()
    ledger = Ledger(engine, identity, f"site/{name}", clock)
    budget = Budget(engine, name, SitePolicy.load(home.policy).caps, ledger.append, clock)
    spent = budget.spent("drugs")
    (derived,) = assert_verifies(place.root, ledger, identity.public)
    engine.dispose()
    undrawn = {round_ for site, round_ in schedule.undrawn if site == name}
    assert place.draws(name) == [r for r in range(1, rounds + 1) if r not in undrawn]
    assert spent.reserved + spent.committed == rounds == derived.reserved
    lost = [round_ for round_, site in schedule.lost.items() if site == name]
    late = [r for r in lost if schedule.script.wire.get((r, name)) == "answer too late"]
    assert spent.reserved == len(lost) - len(late)
    every = epsilon([MechanismEvent(0.5, 6.0, rounds)], 1e-6)
    assert derived.epsilon_loc == pytest.approx(spent.epsilon_loc) == pytest.approx(every)


def assert_verifies(folder: Path, ledger: Ledger, key: PublicIdentity) -> tuple[object, ...]:
    """An auditor's view of a ledger, from its export and the public key alone."""
    path = folder / "export.jsonl"
    ledger.export(path)
    report = verify_export(path, [key])
    assert report.valid, report.reason
    return report.epsilons
