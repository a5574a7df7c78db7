"""Updates that arrive again, or twice: each counts once, under the site that made it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from coordinator.job import JobLoop
from coordinator.status import RoundStatus
from privacy.parcel import Parcel
from tests.coordinator.fakes import Federation, StepLink, make_tools, request

pytestmark = pytest.mark.faults


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


@dataclasses.dataclass
class Capture:
    """Keeps what a site sends, in order, and sends `instead(kept)` where that is something."""

    instead: Callable[[list[Parcel], Parcel], Parcel | None]
    kept: list[Parcel] = dataclasses.field(default_factory=list)

    def __call__(self, parcel: Parcel) -> Parcel:
        sent = self.instead(self.kept, parcel)
        self.kept.append(parcel)
        return sent or parcel


def restart(federation: Federation, folder: Path) -> None:
    """The coordinator's process ends, and another opens its database."""
    federation.engine.dispose()
    tools, engine = make_tools(folder, federation.identity, federation.clock)
    federation.tools, federation.engine = tools, engine
    federation.operations = dataclasses.replace(federation.operations, tools=tools, engine=engine)


def run(federation: Federation, job: str) -> tuple[RoundStatus, ...]:
    JobLoop(job, federation.tools, StepLink(federation.sites)).run(federation.clock.wait)
    status = federation.operations.status(job)
    assert status.state == "released"
    return status.latest_rounds


def quarantined(federation: Federation) -> dict[str, str]:
    return {s.site: s.quarantine_code for s in federation.operations.sites() if s.quarantine_code}


def test_an_update_replayed_in_its_round_by_another_site_counts_once(
    federation: Federation,
) -> None:
    """The bytes are right; the signature is not the one of the connection that they come by."""
    east, west = federation.sites["east"], federation.sites["west"]
    east.spoil = capture = Capture(lambda _kept, _own: None)
    west.spoil = lambda _: capture.kept[0]
    job = federation.operations.submit(request(rounds=1, quorum=2))
    (round_,) = run(federation, job)
    assert round_.admitted == ("east", "north")
    assert quarantined(federation) == {"west": "signature-invalid"}


def test_an_update_signed_anew_by_another_site_in_its_round_counts_once(
    federation: Federation,
) -> None:
    east, west = federation.sites["east"], federation.sites["west"]
    east.spoil = capture = Capture(lambda _kept, _own: None)
    west.spoil = lambda _: west.sealed(job, 1, capture.kept[0].payload)
    job = federation.operations.submit(request(rounds=1, quorum=2))
    (round_,) = run(federation, job)
    assert round_.admitted == ("east", "north")
    assert quarantined(federation) == {"west": "update-replayed"}


def test_an_update_replayed_in_the_next_round_is_refused(federation: Federation) -> None:
    west = federation.sites["west"]
    west.spoil = Capture(lambda kept, _own: kept[0] if kept else None)
    job = federation.operations.submit(request(rounds=2, quorum=2))
    first, second = run(federation, job)
    assert first.number == 1
    assert first.admitted == ("east", "north", "west")
    assert second.refused == {"west": "round-mismatch"}


def test_an_update_signed_anew_in_the_next_round_is_refused_and_its_site_quarantined(
    federation: Federation,
) -> None:
    west = federation.sites["west"]
    west.spoil = Capture(lambda kept, _own: west.sealed(job, 2, kept[0].payload) if kept else None)
    job = federation.operations.submit(request(rounds=2, quorum=2))
    _, second = run(federation, job)
    assert second.refused == {"west": "update-replayed"}
    assert quarantined(federation) == {"west": "update-replayed"}


def test_an_update_replayed_after_a_restart_is_refused(
    federation: Federation, tmp_path: Path
) -> None:
    west = federation.sites["west"]
    west.spoil = Capture(lambda kept, _own: west.sealed(job, 2, kept[0].payload) if kept else None)
    job = federation.operations.submit(request(rounds=2, quorum=2))
    loop = JobLoop(job, federation.tools, StepLink(federation.sites))
    while federation.tools.jobs.load(job).rounds_done < 1:
        loop.step()
    restart(federation, tmp_path)
    _, second = run(federation, job)
    assert second.refused == {"west": "update-replayed"}


def test_a_site_with_different_bytes_after_a_restart_keeps_its_first_update(
    federation: Federation, tmp_path: Path
) -> None:
    """What was admitted is not asked for again, so nothing can take its place."""
    job = federation.operations.submit(request(rounds=1))
    link = StepLink(federation.sites)
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).state == "preparing":
        loop.step()
        link.silent = {"north"}
    while not {"east", "west"} <= set(federation.tools.jobs.admitted_sites(job, 1)):
        loop.step()
    first = list(federation.tools.jobs.payloads(job, 1))
    restart(federation, tmp_path)
    west = federation.sites["west"]
    west.spoil = lambda parcel: west.sealed(job, 1, bytes(len(parcel.payload)))
    orders = list(west.orders)
    loop = JobLoop(job, federation.tools, link)
    loop.step()
    assert list(federation.tools.jobs.payloads(job, 1)) == first
    (round_,) = run(federation, job)
    assert round_.admitted == ("east", "north", "west")
    assert west.orders == orders


def test_a_site_that_answers_one_order_twice_with_different_bytes_is_heard_once(
    federation: Federation,
) -> None:
    """The first answer is taken; the second is to a question that is no longer asked."""

    class Twice(StepLink):
        def poll(self, message_ids):
            for delivery in super().poll(message_ids):
                other = delivery.parcel
                if delivery.site == "west" and other is not None and other.kind == "update":
                    changed = west.sealed(job, 1, other.payload[::-1])
                    late[delivery.message_id] = dataclasses.replace(delivery, parcel=changed)
                yield delivery
            yield from [late.pop(m) for m in message_ids if m in late and m in told]
            told.update(message_ids)

    late, told = {}, set()
    west = federation.sites["west"]
    job = federation.operations.submit(request(rounds=1))
    JobLoop(job, federation.tools, Twice(federation.sites)).run(federation.clock.wait)
    assert federation.operations.status(job).updates_admitted == 3
    assert len(late) == 1  # it was never asked for
