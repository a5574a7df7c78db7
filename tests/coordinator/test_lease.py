"""The lease: one coordinator writes; who lost it writes nothing; who died is waited for briefly."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from sqlalchemy import text

from coordinator.errors import CoordinatorError, LeaseError
from coordinator.lease import TERM_S, Lease
from coordinator.registry import Registry
from coordinator.store import create_schema
from privacy.ledger import Ledger
from privacy.signing import Identity
from privacy.store import open_engine, writing
from tests.coordinator.fakes import ENDPOINT, FakeClock


@pytest.fixture
def engine(url):
    opened = open_engine(url)
    create_schema(opened)
    yield opened
    opened.dispose()


@pytest.fixture
def clock():
    return FakeClock()


def never(_: float) -> None:
    pytest.fail("nothing was there to wait for")


def test_a_second_coordinator_is_refused_as_soon_as_the_first_renews(engine, clock):
    first, second = Lease(engine, clock), Lease(engine, clock)
    first.take(never)
    start_s = clock()

    def renewing(duration_s: float) -> None:
        clock.wait(duration_s)
        if clock() - start_s >= first.renew_every_s:
            first.renew()

    with pytest.raises(LeaseError) as caught:
        second.take(renewing)
    assert caught.value.code == "coordinator-running"
    assert clock() - start_s < first.term_s
    first.renew()


def test_a_killed_holder_delays_a_restart_by_no_more_than_a_term(engine, clock):
    Lease(engine, clock).take(never)
    killed_s = clock()
    Lease(engine, clock).take(clock.wait)
    assert 0 < clock() - killed_s <= TERM_S


def test_a_term_is_the_longest_delay_also_after_a_clock_was_set_back(engine, clock):
    Lease(engine, FakeClock(clock() + 3600)).take(never)
    killed_s = clock()
    Lease(engine, clock).take(clock.wait)
    assert clock() - killed_s <= TERM_S


def test_a_stopped_coordinator_delays_nobody(engine, clock):
    first = Lease(engine, clock)
    first.take(never)
    first.release()
    Lease(engine, clock).take(never)


def test_who_lost_the_lease_writes_nothing_more(engine, clock):
    """Suspended for longer than a term, replaced, and woken in the middle of its work."""
    suspended = Lease(engine, clock)
    mine = suspended.take(never)
    identity = Identity.generate()
    ledger = Ledger(mine, identity, "coordinator", lambda: datetime.fromtimestamp(clock(), UTC))
    registry = Registry(mine, identity, clock)
    registry.invite("north", ENDPOINT, 60)
    clock.wait(TERM_S)
    replacing = Lease(engine, clock)
    theirs = Registry(replacing.take(never), identity, clock)
    for write in (
        lambda: registry.invite("west", ENDPOINT, 60),
        lambda: ledger.append("event", {}),
        suspended.renew,
    ):
        with pytest.raises(CoordinatorError) as caught:
            write()
        assert caught.value.code == "lease-lost"
    suspended.release()  # not its own to give up
    replacing.renew()
    theirs.invite("west", ENDPOINT, 60)
    assert ledger.size == 0


def test_an_expired_lease_that_nobody_took_is_renewed(engine, clock):
    lease = Lease(engine, clock)
    mine = lease.take(never)
    clock.wait(10 * TERM_S)
    lease.renew()
    Registry(mine, Identity.generate(), clock).invite("north", ENDPOINT, 60)


def test_the_same_token_under_another_holder_does_not_pass(engine, clock):
    """As after a database put back from a backup: the numbers repeat, the holder does not."""
    lease = Lease(engine, clock)
    mine = lease.take(never)
    with writing(engine) as session:
        session.execute(text("UPDATE lease SET holder = 'another'"))
    for write in (
        lease.renew,
        lambda: Registry(mine, Identity.generate(), clock).invite("north", ENDPOINT, 60),
    ):
        with pytest.raises(LeaseError):
            write()
