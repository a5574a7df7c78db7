"""The ledger's tables, and the few statements that read and write them.

A log row holds the current signed tree head, so that every committed state of the entries has a
signature over its root. Rows are only evidence: `privacy.ledger` trusts none before it verifies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from sqlalchemy import ForeignKey, delete, insert, select, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from privacy.store import Base

_ROWS_PER_FETCH = 1000


class LogRow(Base):
    """One log: its public key and its current signed tree head (a DSSE envelope)."""

    __tablename__ = "ledger_log"

    log_id: Mapped[str] = mapped_column(primary_key=True)
    public_pem: Mapped[str]
    head: Mapped[bytes]


class EntryRow(Base):
    """One entry as its DSSE envelope. Its columns are not trusted: the envelope says its place."""

    __tablename__ = "ledger_entry"

    log_id: Mapped[str] = mapped_column(ForeignKey(LogRow.log_id), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    sealed: Mapped[bytes]


class PeerHeadRow(Base):
    """A tree head of another party's log that `log_id` was shown; never deleted.

    It is open until a later head is proved to extend it.
    """

    __tablename__ = "ledger_peer_head"

    log_id: Mapped[str] = mapped_column(ForeignKey(LogRow.log_id), primary_key=True)
    peer: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    root: Mapped[str]
    open: Mapped[bool]


class ShownHeadRow(Base):
    """A size at which `log_id` showed its head to a peer, who may hold it."""

    __tablename__ = "ledger_shown_head"

    log_id: Mapped[str] = mapped_column(ForeignKey(LogRow.log_id), primary_key=True)
    peer: Mapped[str] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


@dataclasses.dataclass(frozen=True)
class PeerHead:
    """A head of another party's log, and whether it still waits for a proof."""

    size: int
    root: str
    open: bool


@dataclasses.dataclass(frozen=True)
class Log:
    """What the database says of a log: its public key and its signed head's envelope."""

    public_pem: str
    head: bytes


def find_log(session: Session, log_id: str) -> Log | None:
    """The log's row as it is now."""
    query = select(LogRow.public_pem, LogRow.head).where(LogRow.log_id == log_id)
    row = session.execute(query).one_or_none()
    return None if row is None else Log(*row)


def add_log(session: Session, log_id: str, log: Log) -> None:
    """Begin a log."""
    session.execute(insert(LogRow).values(log_id=log_id, **dataclasses.asdict(log)))


def add_entries(
    session: Session, log_id: str, position: int, sealed: Sequence[bytes], head: bytes
) -> None:
    """Add entries from `position` on, and put the head over them in the place of the last."""
    rows = [
        {"log_id": log_id, "position": at, "sealed": one} for at, one in enumerate(sealed, position)
    ]
    session.execute(insert(EntryRow), rows)
    session.execute(update(LogRow).where(LogRow.log_id == log_id).values(head=head))


def sealed_entries(
    session: Session, log_id: str, start: int = 0, end: int | None = None
) -> Iterator[bytes]:
    """Envelopes of entries [start, end) in order, fetched a page at a time."""
    while True:
        query = select(EntryRow.position, EntryRow.sealed).where(
            EntryRow.log_id == log_id, EntryRow.position >= start
        )
        if end is not None:
            query = query.where(EntryRow.position < end)
        page = session.execute(query.order_by(EntryRow.position).limit(_ROWS_PER_FETCH)).all()
        yield from (row.sealed for row in page)
        if len(page) < _ROWS_PER_FETCH:
            return
        start = page[-1].position + 1


def peer_heads(session: Session, log_id: str, peer: str) -> list[PeerHead]:
    """Every head of `peer` that was kept, smallest first."""
    query = select(PeerHeadRow.size, PeerHeadRow.root, PeerHeadRow.open).where(
        PeerHeadRow.log_id == log_id, PeerHeadRow.peer == peer
    )
    return [PeerHead(*row) for row in session.execute(query.order_by(PeerHeadRow.size))]


def add_peer_head(session: Session, log_id: str, peer: str, *, size: int, root: str) -> None:
    """Keep a head of `peer`, open."""
    row = {"log_id": log_id, "peer": peer, "size": size, "root": root, "open": True}
    session.execute(insert(PeerHeadRow).values(row))


def close_peer_heads(session: Session, log_id: str, peer: str) -> None:
    """Every head of `peer` kept so far has been proved."""
    session.execute(
        update(PeerHeadRow)
        .where(PeerHeadRow.log_id == log_id, PeerHeadRow.peer == peer, PeerHeadRow.open.is_(True))
        .values(open=False)
    )


def shown_sizes(session: Session, log_id: str, peer: str) -> list[int]:
    """Sizes of our heads that `peer` may hold, smallest first."""
    query = select(ShownHeadRow.size).where(
        ShownHeadRow.log_id == log_id, ShownHeadRow.peer == peer
    )
    return list(session.scalars(query.order_by(ShownHeadRow.size)))


def add_shown_size(session: Session, log_id: str, peer: str, size: int) -> None:
    """`peer` may hold our head of this size from now on."""
    session.execute(insert(ShownHeadRow).values(log_id=log_id, peer=peer, size=size))


def forget_shown(session: Session, log_id: str, peer: str, *, below: int) -> None:
    """`peer` holds our head of size `below`, and needs no proof from smaller ones."""
    session.execute(
        delete(ShownHeadRow).where(
            ShownHeadRow.log_id == log_id, ShownHeadRow.peer == peer, ShownHeadRow.size < below
        )
    )
