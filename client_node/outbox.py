"""The outbox: what was sealed for a round is kept, and sent again byte for byte when asked again.

A round is `started` before its cohort is drawn, `sealed` in the transaction that stores its bytes,
and `settled` once budget and ledger know of it. A round found `started` after a crash is lost: its
reservation counts as spent and it is never drawn a second time (invariants I1 and I2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sqlalchemy import Engine, func, select

from client_node.store import Base, OutboxRow
from privacy.parcel import Parcel
from privacy.store import create_tables, reading, writing


@dataclasses.dataclass(frozen=True)
class OutboxEntry:
    """One round: the hash of the order that asked for it, and the update once it is sealed."""

    job: str
    round: int
    order_sha256: str
    settled: bool
    update: Parcel | None


class Outbox:
    """Rounds by (job, round)."""

    def __init__(self, engine: Engine) -> None:
        create_tables(engine, Base.metadata)
        self._engine = engine

    def find(self, job: str, round_: int) -> OutboxEntry | None:
        """The entry of a round, or None where it was never started."""
        with reading(self._engine) as session:
            row = session.get(OutboxRow, (job, round_))
            return None if row is None else _entry(row)

    def last_round(self, job: str) -> int:
        """The highest round of `job` ever started here; 0 before the first."""
        query = select(func.max(OutboxRow.round)).where(OutboxRow.job == job)
        with reading(self._engine) as session:
            return session.scalar(query) or 0

    def start(self, job: str, round_: int, order_sha256: str) -> bool:
        """Claim a round. False where it was claimed before, even by another process."""
        with writing(self._engine) as session:
            if session.get(OutboxRow, (job, round_)) is not None:
                return False
            session.add(
                OutboxRow(job=job, round=round_, order_sha256=order_sha256, state="started")
            )
            return True

    def release(self, job: str, round_: int) -> None:
        """Give up a claim under which nothing was drawn; a sealed round is left alone."""
        with writing(self._engine) as session:
            row = session.get(OutboxRow, (job, round_))
            if row is not None and row.state == "started":
                session.delete(row)

    def seal(self, job: str, round_: int, update: Parcel, receipt: Callable[[], None]) -> None:
        """Store the sealed update; `receipt` runs inside the transaction, so both or neither."""
        with writing(self._engine) as session:
            row = session.get_one(OutboxRow, (job, round_))
            row.state, row.statement, row.payload = "sealed", update.statement, update.payload
            receipt()

    def settle(self, job: str, round_: int) -> None:
        """Mark a sealed round as known to budget and ledger."""
        with writing(self._engine) as session:
            session.get_one(OutboxRow, (job, round_)).state = "settled"

    def unsettled(self) -> list[OutboxEntry]:
        """Sealed rounds that a crash kept from being settled."""
        query = select(OutboxRow).where(OutboxRow.state == "sealed").order_by(OutboxRow.round)
        with reading(self._engine) as session:
            return [_entry(row) for row in session.scalars(query)]


def _entry(row: OutboxRow) -> OutboxEntry:
    update = None
    if row.statement is not None and row.payload is not None:
        update = Parcel("update", row.statement, row.payload)
    return OutboxEntry(row.job, row.round, row.order_sha256, row.state == "settled", update)
