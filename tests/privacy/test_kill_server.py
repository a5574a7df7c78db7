"""SIGKILL to the database server: what it acknowledged is there when it is back (I1, I4).

The site itself lives on: its ledger and its budget go on with the server that comes back, and must
not believe less, or more, than the server kept.
"""

from __future__ import annotations

import threading

import pytest
from sqlalchemy.exc import DBAPIError

from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.store import open_engine
from tests.postgres import PostgresServer, postgres_server
from tests.privacy.ledger_support import LOG_ID, ticking
from tests.privacy.test_kill import CAPS, IDENTITY, PLAN

DEATHS = 8


class Site:
    """Two threads that append and one that reserves and commits, until the database is gone."""

    def __init__(self, url: str) -> None:
        self.engine = open_engine(url)
        self.ledger = Ledger(self.engine, IDENTITY, LOG_ID, ticking())
        self.budget = Budget(self.engine, "north", CAPS, self.ledger.append)
        self.entries: dict[int, int] = {}  # index acknowledged: number that was appended
        self.reserved: list[int] = []
        self.committed: list[int] = []
        self._acknowledged = threading.Semaphore(0)

    def work_until_killed(self, server: PostgresServer, acknowledgements: int) -> None:
        """Kill the server once so many operations were acknowledged, wherever the rest then are."""
        workers = [
            threading.Thread(target=self._until_gone, args=(work,))
            for work in (self._append, self._append, self._spend)
        ]
        for worker in workers:
            worker.start()
        for _ in range(acknowledgements):
            assert self._acknowledged.acquire(timeout=60)
        server.kill()
        for worker in workers:
            worker.join(timeout=60)
            assert not worker.is_alive()

    def _until_gone(self, work) -> None:
        try:
            while True:
                work()
                self._acknowledged.release()
        except DBAPIError:
            return

    def _append(self) -> None:
        number = threading.get_ident()
        entry = self.ledger.append("round.opened", {"round": number})
        self.entries[entry.index] = number

    def _spend(self) -> None:
        # A round whose fate the crash left open is asked for again, as a site does that starts.
        round_ = len(self.reserved) + 1
        reservation = self.budget.reserve(PLAN, round_)
        self.reserved.append(round_)
        self.budget.commit(reservation)
        self.committed.append(round_)


def recorded(ledger: Ledger) -> set[int]:
    return {e.fields["round"] for e in ledger.entries() if e.kind == "budget.reserved"}


def require_all(site: Site, ledger: Ledger, budget: Budget) -> None:
    found = ledger.entries()
    for index, number in site.entries.items():
        assert found[index].fields == {"round": number}
    assert recorded(ledger) >= set(site.reserved)
    state = budget.spent(PLAN.purpose)
    assert state.reserved + state.committed >= len(site.reserved)
    assert state.committed >= len(site.committed)


@pytest.mark.slow
def test_a_killed_server_loses_nothing_acknowledged() -> None:
    with postgres_server() as server:
        url = server.new_database()
        site = Site(url)
        for death in range(DEATHS):
            before = len(site.entries), len(site.committed)
            site.work_until_killed(server, 6 + 5 * death)
            assert (len(site.entries), len(site.committed)) > before
            server.start()
            # The same ledger goes on, and one opened anew verifies what the server kept.
            require_all(site, site.ledger, site.budget)
            engine = open_engine(url)
            ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
            budget = Budget(engine, "north", CAPS, ledger.append)
            require_all(site, ledger, budget)
            # What was reserved and not acknowledged counts too, and is now on the ledger.
            state = budget.spent(PLAN.purpose)
            assert recorded(ledger) == set(range(1, state.reserved + state.committed + 1))
            engine.dispose()
        site.engine.dispose()
