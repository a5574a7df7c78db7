"""The room's one SQLAlchemy file: engines, transactions and the budget's table.

SQLite (embedded) and PostgreSQL (the extra `postgresql`) are supported. A transaction opened by
`writing` excludes every other writer from its first statement, so that a read-decide-write sequence
(is there budget left?) never acts on a stale read; one opened by `reading` sees one snapshot and
blocks nobody.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, UniqueConstraint, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, OperationalError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from privacy.errors import StoreError

BUSY_TIMEOUT_MS = 30_000
_RETRY_S = 0.01
_WRITES = "auricle_writes"
_FENCE = "auricle_fence"
_POSTGRES_WRITER_LOCK = 0x41555249  # "AURI"; any constant shared by all writers serves
_LOCKED = (
    "database-locked",
    "another program holds the database's write lock and does not let go",
    "find the program that has the database open, end it, and start again",
)
_FULL = (
    "database-full",
    "the disk that the database is on is full, and nothing was written",
    "make room on that disk and start again: nothing is lost but the step in hand",
)
# sqlite.org/rescode.html; postgresql.org/docs/current/errcodes-appendix.html
_REASONS = {
    str(sqlite3.SQLITE_BUSY): _LOCKED,
    "55P03": _LOCKED,
    str(sqlite3.SQLITE_FULL): _FULL,
    "53100": _FULL,
}


class Base(DeclarativeBase):
    """Declarative base of every table of this room."""


class ReservationRow(Base):
    """One budget reservation: the mechanism of one round at one site, written before it runs.

    ε is never stored: it is derived from these columns each time it is asked for.
    """

    __tablename__ = "budget_reservation"
    __table_args__ = (UniqueConstraint("site", "job", "round"),)

    sequence: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    site: Mapped[str]
    job: Mapped[str]
    round: Mapped[int]
    purpose: Mapped[str]
    plan_sha256: Mapped[str]
    base_sha256: Mapped[str]
    unit: Mapped[str]
    adjacency: Mapped[str]
    sampling_rate: Mapped[float]
    noise_multiplier: Mapped[float]
    clipping_norm: Mapped[float]
    delta: Mapped[float]
    year: Mapped[int]  # calendar year in UTC
    committed: Mapped[bool] = mapped_column(default=False)
    recorded: Mapped[bool] = mapped_column(default=False)  # the ledger has the reservation


def open_engine(url: str) -> Engine:
    """Engine for `url` (sqlite:///PATH or postgresql://USER@HOST/NAME), durable at commit.

    An SQLite file is created readable by its owner only; SQLite gives its journal the same mode.
    Raises StoreError for a URL of no supported database, without repeating it: it may hold a
    password.
    """
    parsed = read_url(url)
    if parsed.get_backend_name() == "postgresql":
        return _open_postgresql(parsed)
    if parsed.database and parsed.database != ":memory:":
        os.close(os.open(parsed.database, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_engine(parsed, hide_parameters=True)  # an error names no subject (I5)
    event.listen(engine, "connect", _configure_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def read_url(url: str) -> URL:
    """`url` checked to name an SQLite file or a PostgreSQL database. Raises StoreError."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        parsed = None
    if parsed is None or parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(
            "the database's URL is not one of SQLite or PostgreSQL",
            remedy="write sqlite:////PATH or postgresql://USER:PASSWORD@HOST:5432/NAME",
        )
    return parsed


@contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Session in one transaction that excludes other writers; commits unless the block raises.

    Raises StoreError "database-locked" where another writer does not let go for BUSY_TIMEOUT_MS,
    and "database-full" where the disk is; nothing was then committed.
    """
    with _in_words(), engine.connect() as plain:
        # Not a stricter isolation: PostgreSQL would take its one snapshot before it waits here for
        # the lock, and decide on what was there before the writer that it waited for.
        connection = plain.execution_options(**{_WRITES: True})
        with connection.begin(), Session(connection, expire_on_commit=False) as session:
            if connection.dialect.name == "postgresql":
                lock = {"key": _POSTGRES_WRITER_LOCK}
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), lock)
            if check := connection.get_execution_options().get(_FENCE):
                check(session)
            yield session
            session.flush()


def fenced(engine: Engine, check: Callable[[Session], None]) -> Engine:
    """The same database, where every `writing` transaction begins with `check`, which may raise.

    It runs once other writers are excluded: what it finds holds until the transaction ends.
    """
    return engine.execution_options(**{_FENCE: check})


@contextmanager
def reading(engine: Engine) -> Iterator[Session]:
    """Session in one transaction for reading; whatever it changes is rolled back.

    Raises StoreError as `writing` does: opening a database may write, too.
    """
    with _in_words(), engine.connect() as plain, Session(_one_snapshot(plain)) as session:
        yield session


@contextmanager
def _in_words() -> Iterator[None]:
    """Tell apart the two failures of a sound database that whoever runs it can put right."""
    try:
        yield
    except OperationalError as error:
        reason = _REASONS.get(_cause(error))
        if reason is None:
            raise
        code, problem, remedy = reason
        raise StoreError(problem, remedy=remedy, code=code) from error


def _cause(error: OperationalError) -> str:
    """SQLite's primary result code, or PostgreSQL's SQLSTATE."""
    extended = getattr(error.orig, "sqlite_errorcode", None)
    if extended is not None:
        return str(extended & 0xFF)
    return str(getattr(error.orig, "sqlstate", ""))


def _one_snapshot(connection: Connection) -> Connection:
    if connection.dialect.name == "postgresql":
        return connection.execution_options(isolation_level="REPEATABLE READ")
    return connection  # an SQLite transaction never sees another's commit


def _open_postgresql(url: URL) -> Engine:
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        engine = create_engine(url, pool_pre_ping=True, hide_parameters=True)
    except ModuleNotFoundError as error:
        raise StoreError(
            "PostgreSQL needs a driver that is not installed",
            remedy="install Auricle with its extra: pip install 'auricle[postgresql]'",
            code="database-driver",
        ) from error
    event.listen(engine, "connect", _configure_postgresql)
    return engine


def _configure_postgresql(connection: Any, _record: Any) -> None:
    # A server may be set to answer before its log is on disk, and then a crash of it would forget
    # spend (I1). A lock that never comes would hang a round; SQLite gives up after as long.
    with connection.cursor() as cursor:
        cursor.execute("SET synchronous_commit TO on")
        cursor.execute(f"SET lock_timeout TO {BUSY_TIMEOUT_MS}")
    connection.commit()


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # With isolation_level None the driver emits no BEGIN of its own: _begin_sqlite does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    _use_write_ahead_log(cursor)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _use_write_ahead_log(cursor: Any) -> None:
    """Switch the file to WAL; a no-op once it is.

    SQLite answers "locked" at once, without its busy timeout, when two connections switch a new
    file at the same moment (sqlite.org/wal.html, section 9). The other one is then doing our work.
    """
    until_s = time.monotonic() + BUSY_TIMEOUT_MS / 1000
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError:
            if time.monotonic() > until_s:
                raise
            time.sleep(_RETRY_S)
        else:
            return


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
