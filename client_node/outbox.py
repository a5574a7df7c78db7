"""The outbox: what was sealed for a round is kept, and sent again byte for byte when asked again.

A round is sealed in the transaction that stores its bytes, and settled once budget and ledger know
of it. A round whose reservation exists and whose bytes do not was lost in a crash: it stays spent
and is never drawn a second time (invariants I1 and I2).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from sqlalchemy import Engine, func, select

from client_node.tables import OutboxRow, open_schema
from privacy.parcel import Parcel
from privacy.store import reading, writing


@dataclasses.dataclass(frozen=True)
class OutboxEntry:
    """One sealed round: the hash of what its order carried, and the update."""

    job: str
    round: int
    order_sha256: str
    settled: bool
    update: Parcel


class Outbox:
    """Rounds by (job, round)."""

    def __init__(self, engine: Engine) -> None:
        open_schema(engine)
        self._engine = engine

    def find(self, job: str, round_: int) -> OutboxEntry | None:
        """The entry of a round, or None where it was never sealed."""
        with reading(self._engine) as session:
            row = session.get(OutboxRow, (job, round_))
            return None if row is None else _entry(row)

    def last_round(self, job: str) -> int:
        """The highest round of `job` ever sealed here; 0 before the first."""
        query = select(func.max(OutboxRow.round)).where(OutboxRow.job == job)
        with reading(self._engine) as session:
            return session.scalar(query) or 0

    def seal(
        self, job: str, round_: int, order_sha256: str, update: Parcel, receipt: Callable[[], None]
    ) -> None:
        """Store a round's sealed update; `receipt` runs inside the transaction: both or neither.

        Raises sqlalchemy's IntegrityError for a round that is sealed already.
        """
        with writing(self._engine) as session:
            session.add(
                OutboxRow(
                    job=job,
                    round=round_,
                    order_sha256=order_sha256,
                    statement=update.statement,
                    payload=update.payload,
                    settled=False,
                )
            )
            session.flush()
            receipt()

    def settle(self, job: str, round_: int) -> None:
        """Mark a sealed round as known to budget and ledger."""
        with writing(self._engine) as session:
            session.get_one(OutboxRow, (job, round_)).settled = True

    def unsettled(self) -> list[OutboxEntry]:
        """Sealed rounds that a crash kept from being settled."""
        query = select(OutboxRow).where(OutboxRow.settled.is_(False)).order_by(OutboxRow.round)
        with reading(self._engine) as session:
            return [_entry(row) for row in session.scalars(query)]


def _entry(row: OutboxRow) -> OutboxEntry:
    update = Parcel("update", row.statement, row.payload)
    return OutboxEntry(row.job, row.round, row.order_sha256, row.settled, update)
