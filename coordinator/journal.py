"""The journal: events that committed transitions owe to the ledger, delivered exactly once.

A transition and its events commit in one transaction (the transactional outbox pattern); the
ledger, which commits on its own, receives them afterwards. A crash between the two leaves events
owed, and `flush` finds by their number those that the ledger has already.
"""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from coordinator.store import JournalRow
from privacy.ledger import Ledger
from privacy.peer_heads import PeerHeads
from privacy.store import reading, writing

if TYPE_CHECKING:
    from coordinator.registry import SiteRecord

_EVENT = "event"


def note(session: Session, kind: str, fields: dict[str, Any]) -> None:
    """Owe the ledger an entry, within the caller's transaction."""
    session.add(JournalRow(kind=kind, fields_json=json.dumps(fields), entry=None))


class Journal:
    """Delivers owed events to `ledger`, in order."""

    def __init__(self, engine: Engine, ledger: Ledger) -> None:
        self._engine = engine
        self._ledger = ledger
        self._lock = threading.Lock()
        self._recovered = False

    @property
    def ledger(self) -> Ledger:
        """The ledger behind the journal."""
        return self._ledger

    def heads(self, site: SiteRecord) -> PeerHeads:
        """The exchange of ledger heads with `site`."""
        # A site enrolled again under its name has a new key, and begins a new ledger; one that
        # rotates its key goes on with the ledger that it has.
        return self._ledger.peer(f"site/{site.name}/{site.ledger_key_id[:16]}")

    def flush(self) -> None:
        """Append every owed event. Raises LedgerError where the ledger does not verify."""
        with self._lock:
            known = {} if self._recovered else self._delivered_unmarked()
            for sequence, kind, fields_json in self._owed():
                index = known.get(sequence)
                if index is None:
                    fields = json.loads(fields_json) | {_EVENT: sequence}
                    index = self._ledger.append(kind, fields).index
                with writing(self._engine) as session:
                    session.get_one(JournalRow, sequence).entry = index
            self._recovered = True

    def _owed(self) -> list[tuple[int, str, str]]:
        query = (
            select(JournalRow.sequence, JournalRow.kind, JournalRow.fields_json)
            .where(JournalRow.entry.is_(None))
            .order_by(JournalRow.sequence)
        )
        with reading(self._engine) as session:
            return [(row.sequence, row.kind, row.fields_json) for row in session.execute(query)]

    def _delivered_unmarked(self) -> dict[int, int]:
        with reading(self._engine) as session:
            last = session.scalar(select(func.max(JournalRow.entry)))
        start = 0 if last is None else last + 1
        entries = self._ledger.entries(start, self._ledger.size)
        return {entry.fields[_EVENT]: entry.index for entry in entries if _EVENT in entry.fields}
