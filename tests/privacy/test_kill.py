"""kill -9 at any moment: what was acknowledged is there, and the ledger opens (I1, I4).

Each life is a process that appends to the ledger from up to two threads while it reserves and
commits budget, and acknowledges each over a pipe; it is killed after some of them, wherever
its threads then are. Some lives are killed exactly before or after a commit.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from pathlib import Path

import pytest
from sqlalchemy import event

from privacy.budget import Budget, BudgetCaps
from privacy.ledger import Ledger
from privacy.signing import Identity
from privacy.store import open_engine
from tests.privacy.ledger_support import LOG_ID, ticking
from tests.privacy.plans import DELTA, make_plan

IDENTITY = Identity.generate()
# Without noise ε is infinite and takes no time to compose: rounds are what is counted here.
PLAN = make_plan(rounds=100_000, privacy_mode="none", noise_multiplier=0.0)
CAPS = BudgetCaps(delta=DELTA, default=8.0, allow_unprotected=True)


def live(
    url: str, pipe: tuple[int, int], first_round: int, appenders: int, kill_at_commit: int | None
) -> None:
    """Append, reserve and commit until killed, or until nobody listens."""
    reading, writing = pipe
    os.close(reading)
    engine = open_engine(url)
    ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
    budget = Budget(engine, "north", CAPS, ledger.append)
    commits = 0

    def count(_connection: object) -> None:
        nonlocal commits
        commits += 1
        if commits == kill_at_commit:
            os.kill(os.getpid(), signal.SIGKILL)

    event.listen(engine, "commit", count)

    def append() -> None:
        while True:
            acknowledge("a", ledger.append("round.opened", {"round": 1}).index)

    def acknowledge(what: str, number: int) -> None:
        os.write(writing, f"{what} {number}\n".encode())  # short enough to be written whole

    for _ in range(appenders):
        threading.Thread(target=append, daemon=True).start()
    for round_ in range(first_round, PLAN.rounds):
        reservation = budget.reserve(PLAN, round_)
        acknowledge("r", round_)
        budget.commit(reservation)
        acknowledge("c", round_)


def acknowledged_in_one_life(url: str, first_round: int, life: int) -> list[tuple[str, int]]:
    reading, writing = os.pipe()
    kill_at_commit = 1 + life % 7 if life % 2 else None
    child = multiprocessing.get_context("fork").Process(
        target=live, args=(url, (reading, writing), first_round, life % 3, kill_at_commit)
    )
    child.start()
    os.close(writing)
    patience = 1 + life * 7 % 23
    with os.fdopen(reading, "r", encoding="ascii") as pipe:
        lines = []
        for line in pipe:
            lines.append(line.split())
            if kill_at_commit is None and len(lines) == patience:
                assert child.pid is not None
                os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    return [(what, int(number)) for what, number in lines]


def check(url: str, lives: int) -> None:
    entries = reserved = committed = 0
    for life in range(lives):
        for what, number in acknowledged_in_one_life(url, reserved + 1, life):
            match what:
                case "a":
                    entries = max(entries, number + 1)
                case "r":
                    reserved = number
                case "c":
                    committed += 1
        engine = open_engine(url)
        ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())  # verifies all of it
        budget = Budget(engine, "north", CAPS, ledger.append)
        assert ledger.size >= entries
        state = budget.spent(PLAN.purpose)
        assert state.reserved + state.committed >= reserved
        assert state.committed >= committed
        # Whatever may have run is on the ledger, acknowledged or not.
        kept = {e.fields["round"] for e in ledger.entries() if e.kind == "budget.reserved"}
        assert kept == set(range(1, state.reserved + state.committed + 1))
        reserved, committed = state.reserved + state.committed, state.committed
        entries = ledger.size
        engine.dispose()
    assert reserved > 0
    assert entries > 0


def test_kill_9_loses_nothing_acknowledged(tmp_path: Path) -> None:
    check(f"sqlite:///{tmp_path / 'auricle.db'}", 8)


# Twenty lives a database and not two hundred: each life begins by verifying the whole ledger.
@pytest.mark.slow
@pytest.mark.parametrize("database", range(10))
def test_kill_9_two_hundred_times_loses_nothing_acknowledged(url: str, database: int) -> None:
    check(url, 20)
