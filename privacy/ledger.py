"""The ledger: an append-only log of signed events that anyone can verify without trusting us.

Every append is in a committed transaction that writes the entry and a new signed tree head over
it; appends of several threads share one (group commit). Opening verifies the whole log, and each
later operation verifies whatever another thread or process has added since, so a service never runs
on a ledger that does not verify (I4).
"""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from privacy import ledger_tables as tables
from privacy.durable_file import replacing
from privacy.errors import LedgerError, SignatureError
from privacy.ledger_entry import (
    KEY_ROTATED,
    Chain,
    Entry,
    EntryError,
    SignedTreeHead,
    TreeHead,
    export_header,
    open_entry,
    timestamp,
)
from privacy.ledger_signatures import with_signatures
from privacy.merkle import leaf_hash
from privacy.peer_heads import PeerHeads
from privacy.schema import PRIVACY
from privacy.signing import Identity, PublicIdentity
from privacy.store import reading, writing

Clock = Callable[[], datetime]


_MAX_BATCH = 256


@dataclasses.dataclass(eq=False)
class _Append:
    """One event that some thread wants to record, and what came of it."""

    kind: str
    fields: Mapping[str, Any]
    outcome: Entry | Exception | None = None


class Ledger:
    """One log in a database, written with one identity.

    Safe for several threads of a process and for several processes on one database: writers
    exclude each other by a database transaction (`privacy.store.writing`).

    Args:
        engine: from `privacy.store.open_engine`.
        identity: the key of this log's owner; another than signs the log now is refused.
        log_id: name of the log, unique among those who compare tree heads, e.g. "site/north".
        clock: gives the time with its zone.

    Raises LedgerError when the log on disk does not verify, from its first entry to its head.
    """

    def __init__(self, engine: Engine, identity: Identity, log_id: str, clock: Clock) -> None:
        self._engine = engine
        self._identity = identity
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: deque[_Append] = deque()
        self._chain = Chain(log_id, identity.public)
        self._head_seen: bytes | None = None
        self._failure: LedgerError | None = None
        PRIVACY.open(engine)
        with self._lock, writing(engine) as session:
            row = tables.find_log(session, log_id)
            if row is None:
                self._begin_log(session)
            else:
                self._chain = Chain(log_id, self._beginner(row))
            self._catch_up(session)

    @property
    def log_id(self) -> str:
        """Name of the log."""
        return self._chain.log_id

    @property
    def public(self) -> PublicIdentity:
        """The key that signs the log now."""
        return self._chain.key

    def key_of(self, index: int) -> PublicIdentity:
        """The key that signed entry `index`."""
        with self._verified():
            return self._chain.key_of(index)

    @property
    def size(self) -> int:
        """Number of committed entries."""
        return self.tree_head().size

    def append(self, kind: str, fields: Mapping[str, Any]) -> Entry:
        """Record one event; when this returns it is on disk, signed and under a signed head.

        `fields` must be canonical JSON material (no NaN, no infinity: see
        `privacy.ledger_events`) and must name no person, path or text (I5). Raises LedgerError,
        and then nothing was recorded. Call it outside any other write transaction on the same
        database: it waits for that to end.
        """
        if kind == KEY_ROTATED:
            raise LedgerError("a log is handed on by `rotate` alone", remedy="call that")
        wanted = _Append(kind, fields)
        self._waiting.append(wanted)
        with self._lock:
            # Whoever holds the lock writes for all who wait: one commit, and one wait for the disk.
            while wanted.outcome is None:
                self._write_waiting()
        if isinstance(wanted.outcome, Exception):
            raise wanted.outcome
        return wanted.outcome

    def rotate(self, successor: Identity, fields: Mapping[str, Any]) -> Entry:
        """Hand the log on: the last entry of this key names `successor`, which signs from then on.

        `fields` stand in that entry beside the key. Raises LedgerError, and nothing has changed.
        """
        pem = successor.public.public_pem
        with self._lock, self._chain.tentatively(), writing(self._engine) as session:
            self._catch_up(session)
            at = timestamp(self._clock())
            handed = {**fields, "public_pem": pem}
            entry = self._chain.draft(KEY_ROTATED, handed, at, self._identity)
            self._chain.extend(entry)
            head = SignedTreeHead.sign(self._chain.head, at, successor)
            tables.add_entries(session, self.log_id, entry.index, [entry.sealed], head.sealed)
        self._identity, self._head_seen = successor, head.sealed
        return entry

    def _write_waiting(self) -> None:
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), _MAX_BATCH))]
        seen = self._head_seen
        try:
            with self._chain.tentatively(), writing(self._engine) as session:
                self._catch_up(session)
                entries = self._draft(batch)
                if not entries:
                    return
                head = SignedTreeHead.sign(self._chain.head, entries[-1].at, self._identity)
                sealed = [entry.sealed for entry in entries]
                tables.add_entries(session, self.log_id, entries[0].index, sealed, head.sealed)
        except BaseException as error:
            # The chain is back where it was; a commit that did take effect after all is found, with
            # what other processes have added, by the next _catch_up.
            self._head_seen = seen
            for one in batch:
                one.outcome = error if isinstance(error, Exception) else _interrupted()
            raise
        self._head_seen = head.sealed

    def _draft(self, batch: list[_Append]) -> list[Entry]:
        """Entries of what can be written, in the order in which it was asked."""
        entries = []
        for one in batch:
            try:
                entry = self._chain.draft(
                    one.kind, one.fields, timestamp(self._clock()), self._identity
                )
            except LedgerError as error:
                one.outcome = error  # its own fault, and nobody else's
                continue
            self._chain.extend(entry)
            one.outcome = entry
            entries.append(entry)
        return entries

    def tree_head(self) -> SignedTreeHead:
        """The signed head over everything committed, dated when the last entry was."""
        with self._verified() as session:
            return self._current_head(session)

    def entries(self, start: int = 0, end: int | None = None) -> list[Entry]:
        """Entries [start, end) as they are on disk now, checked against the verified tree."""
        with self._verified() as session:
            return list(self._read(session, start, end))

    def root(self, size: int) -> str:
        """Hex Merkle root when the log had `size` entries. Raises LedgerError if it never had."""
        with self._verified(), _known_sizes():
            return self._chain.tree.root(size).hex()

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """RFC 9162 proof that entry `index` is in the log of `size` (default: all) entries.

        Raises LedgerError when it is not.
        """
        with self._verified(), _known_sizes():
            return self._chain.tree.inclusion_proof(index, size)

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """RFC 9162 proof that the log of `new_size` (default: all) entries extends `old_size`.

        Raises LedgerError when the log never had those sizes.
        """
        with self._verified(), _known_sizes():
            return self._chain.tree.consistency_proof(old_size, new_size)

    def peer(self, log_id: str) -> PeerHeads:
        """The exchange of tree heads with the party that keeps log `log_id`."""
        return PeerHeads(self._engine, self, log_id)

    def export(self, path: Path) -> SignedTreeHead:
        """Write the log to `path` for `privacy.ledger_verify`, replacing the file whole.

        Lines of JSON: a header with the public key, each entry's envelope, the signed head.
        Readable by its owner only.
        """
        with self._verified() as session, replacing(path) as file:
            head = self._current_head(session)
            file.write(export_header(self.log_id, self._chain.first_key) + b"\n")
            for entry in self._read(session, 0, head.size):
                file.write(entry.sealed + b"\n")
            file.write(head.sealed + b"\n")
            return head

    @contextmanager
    def _verified(self) -> Iterator[Session]:
        with self._lock, reading(self._engine) as session:
            self._catch_up(session)
            yield session

    def _begin_log(self, session: Session) -> None:
        head = SignedTreeHead.sign(self._chain.head, timestamp(self._clock()), self._identity)
        pem = self._identity.public.public_pem
        tables.add_log(session, self.log_id, tables.Log(pem, head.sealed))

    def _current_head(self, session: Session) -> SignedTreeHead:
        return SignedTreeHead.from_sealed(self._log_row(session).head, self._chain.key)

    def _log_row(self, session: Session) -> tables.Log:
        row = tables.find_log(session, self.log_id)
        if row is None:
            raise _tampered(f"the log {self.log_id} is gone from its database")
        return row

    def _catch_up(self, session: Session) -> None:
        """Verify what the database holds beyond what this object has verified already."""
        if self._failure is not None:
            raise self._failure
        try:
            row = self._log_row(session)
            if row.head != self._head_seen:
                self._verify_growth(session, row)
        except LedgerError as error:
            # The chain may have stopped half way: nothing here may be used any more.
            self._failure = error
            raise

    def _verify_growth(self, session: Session, row: tables.Log) -> None:
        if row.public_pem != self._chain.first_key.public_pem:
            raise self._foreign()
        grown = tables.sealed_entries(session, self.log_id, self._chain.tree.size)
        for sealed, signed in with_signatures(grown, self._chain.key):
            self._chain.open_next(sealed, signed=signed)
        if self._chain.key != self._identity.public:
            raise self._foreign()
        head = SignedTreeHead.from_sealed(row.head, self._chain.key)
        if self._chain.head != TreeHead(head.log_id, head.size, head.root):
            raise _tampered(
                f"the signed head of {self.log_id} covers {head.size} entries; "
                f"the database holds {self._chain.tree.size}, or others"
            )
        self._head_seen = row.head

    def _beginner(self, row: tables.Log) -> PublicIdentity:
        try:
            return PublicIdentity.from_pem(row.public_pem)
        except SignatureError as error:
            raise self._foreign() from error

    def _foreign(self) -> LedgerError:
        return LedgerError(
            f"the log {self.log_id} is signed by another key",
            remedy="start the service with the key that signs this log now",
            code="ledger-key",
        )

    def _read(self, session: Session, start: int, end: int | None) -> Iterator[Entry]:
        for index, sealed in enumerate(
            tables.sealed_entries(session, self.log_id, start, end), start
        ):
            entry = open_entry(sealed, self._chain.key_of(index))
            if index >= self._chain.tree.size or (
                leaf_hash(entry.payload) != self._chain.tree.leaf(index)
            ):
                raise EntryError(
                    f"entry {index} of {self.log_id} changed while in use", index=index
                )
            yield entry


@contextmanager
def _known_sizes() -> Iterator[None]:
    try:
        yield
    except IndexError as error:
        raise LedgerError(
            f"there is no such proof: {error}",
            remedy="ask about entries and sizes that the log has had",
            code="ledger-range",
        ) from error


def _interrupted() -> LedgerError:
    return LedgerError(
        "the append was interrupted before it was on disk",
        remedy="start the service again",
        code="ledger-interrupted",
    )


def _tampered(problem: str) -> LedgerError:
    return LedgerError(
        problem,
        remedy="stop the service, keep the database as evidence, and compare tree heads with the "
        "other parties",
    )
