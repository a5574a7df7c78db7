"""Ledgers of a site that trains, and their exports, for the tests of this folder."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine

from privacy.accountant import accountant_versions, epsilon, epsilon_sec
from privacy.ledger import Ledger
from privacy.ledger_events import RESERVED, TRAINED, MechanismRun, TrainedRound
from privacy.plan import PLAN_FORMAT
from privacy.probes import PROBES, ProbeReceipt, ProbeResult
from privacy.signing import Identity
from privacy.store import open_engine

LOG_ID = "site/north"
SITE = "north"
PURPOSE = "drug-names"
START = datetime(2026, 3, 2, 8, 0, tzinfo=UTC)


def ticking() -> Callable[[], datetime]:
    """A clock that moves on one second each time it is read."""
    seconds = itertools.count()
    return lambda: START + timedelta(seconds=next(seconds))


@contextmanager
def opened(folder: Path, name: str = "auricle.db") -> Iterator[Engine]:
    """Engine on a database file of `folder`, closed at the end."""
    engine = open_engine(f"sqlite:///{folder / name}")
    try:
        yield engine
    finally:
        engine.dispose()


PASSED_PROBES = ProbeReceipt(tuple(ProbeResult(name, "passed") for name in PROBES)).fields()


def run(round_: int, *, job: str = "0b" * 8, purpose: str = PURPOSE) -> MechanismRun:
    return MechanismRun(
        site=SITE,
        job=job,
        round=round_,
        purpose=purpose,
        sampling_rate=0.25,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        delta=1e-6,
        plan_sha256="a1" * 32,
    )


def trained(this: MechanismRun, reserved: Sequence[MechanismRun], **changed: float) -> TrainedRound:
    """What an honest site records for `this` round after all of `reserved`."""
    events = [earlier.event() for earlier in reserved]
    claims = {
        "epsilon_loc": epsilon(events, this.delta),
        "epsilon_sec": epsilon_sec(events, this.delta, 3),
    }
    return TrainedRound(
        run=this,
        base_sha256="b2" * 32,
        **(claims | changed),
        honest_sites=3,
        random_source="aes-256-ctr",
        code_version="0.1.0",
        accountant=accountant_versions(),
        plan_format=PLAN_FORMAT,
        probes=PASSED_PROBES,
    )


def train_rounds(ledger: Ledger, rounds: int) -> None:
    """Reserve and train `rounds` rounds as an honest site does."""
    runs = [run(round_) for round_ in range(1, rounds + 1)]
    for done, this in enumerate(runs, start=1):
        ledger.append(RESERVED, this.fields())
        ledger.append(TRAINED, trained(this, runs[:done]).fields())


def export_of(
    folder: Path, identity: Identity, events: Sequence[tuple[str, dict[str, object]]]
) -> Path:
    """Export of a correctly signed log that holds exactly `events`."""
    path = folder / "export.jsonl"
    with opened(folder, "events.db") as engine:
        ledger = Ledger(engine, identity, LOG_ID, ticking())
        for kind, fields in events:
            ledger.append(kind, fields)
        ledger.export(path)
    return path
