"""The lease: one coordinator at a time writes to a database, whoever else has its address.

One row says who holds it and until when. The holder renews it; whoever starts beside a living
holder is refused, and after a killed one waits at most one term. The row's token grows with each
holder, and every transaction of a coordinator first finds its own token there (a fencing token,
Kleppmann 2016, "How to do distributed locking"): a coordinator that was suspended and replaced
cannot write a word, whatever its clock says. Clocks decide only how long a start waits.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
from collections.abc import Callable

from sqlalchemy import Engine, inspect
from sqlalchemy.orm import Session

from coordinator.errors import LeaseError
from coordinator.store import LeaseRow, upgrade_schema
from privacy.schema import Upgrade
from privacy.store import fenced, writing

_log = logging.getLogger(__name__)

TERM_S = 10.0
RENEWALS_PER_TERM = 5
POLL_S = 0.25
_ONLY = 1
_HOLDER_BYTES = 8


@dataclasses.dataclass(frozen=True)
class _Held:
    """The row as another holder wrote it."""

    holder: str
    token: int
    expires_at_s: float


class Lease:
    """This process's hold on the database of `engine`, for `term_s` seconds from each renewal.

    `clock` gives seconds since the epoch. Holders on two machines need clocks that agree to well
    under a term, or a start replaces a living coordinator, which then stops with "lease-lost".
    """

    def __init__(self, engine: Engine, clock: Callable[[], float], term_s: float = TERM_S) -> None:
        self._engine = engine
        self._clock = clock
        self._holder = secrets.token_hex(_HOLDER_BYTES)
        self._token = 0
        self.term_s = term_s

    @property
    def renew_every_s(self) -> float:
        """Seconds between two renewals."""
        return self.term_s / RENEWALS_PER_TERM

    def take(self, wait: Callable[[float], object]) -> Engine:
        """Take the lease, and give the engine through which its holder writes.

        `wait(seconds)` is called while a holder may be dead: at most a term in all. Raises
        LeaseError "coordinator-running" once the holder is seen to renew.
        """
        watched: _Held | None = None
        waited_s = 0.0
        while held := self._take(dead=watched if waited_s >= self.term_s else None):
            if watched not in (None, held):
                raise LeaseError(
                    "another coordinator runs on this database",
                    remedy="stop that one first, or give this one a database of its own",
                    code="coordinator-running",
                )
            if watched is None:
                _log.warning(
                    "the last coordinator left no word: waiting %.0f s at most", self.term_s
                )
            watched = held
            wait(POLL_S)
            waited_s += POLL_S
        return fenced(self._engine, self.check)

    def check(self, session: Session) -> None:
        """Refuse to go on, within a transaction, unless the lease is ours. Raises LeaseError."""
        row = session.get(LeaseRow, _ONLY)
        if row is None or row.token != self._token or row.holder != self._holder:
            raise LeaseError(
                "another coordinator has taken over this database",
                remedy="stop one of the two, then start the other again; nothing was written by "
                "this one since",
                code="lease-lost",
            )

    def renew(self) -> None:
        """Hold the lease for another term. Raises LeaseError where it was lost."""
        with writing(self._engine) as session:
            self.check(session)
            session.get_one(LeaseRow, _ONLY).expires_at = self._clock() + self.term_s

    def release(self) -> None:
        """Let the next coordinator start at once; nothing where the lease was lost."""
        with writing(self._engine) as session:
            row = session.get(LeaseRow, _ONLY)
            if row is not None and (row.token, row.holder) == (self._token, self._holder):
                row.expires_at = self._clock()

    def _take(self, dead: _Held | None) -> _Held | None:
        """Take the lease where it is free, expired or still `dead`'s; otherwise who holds it."""
        now_s = self._clock()
        with writing(self._engine) as session:
            row = session.get(LeaseRow, _ONLY)
            if row is None:
                row = LeaseRow(id=_ONLY, token=0, holder="", expires_at=now_s)
                session.add(row)
            held = _Held(row.holder, row.token, row.expires_at)
            if now_s < row.expires_at and held != dead:
                return held
            row.holder, row.token = self._holder, row.token + 1
            row.expires_at = now_s + self.term_s
            self._token = row.token
            return None


def upgrade_database(
    engine: Engine, clock: Callable[[], float], wait: Callable[[float], object]
) -> list[Upgrade]:
    """Bring a coordinator's database to this program's version, while no coordinator runs on it.

    Raises LeaseError "coordinator-running", and StoreError for a database that cannot be upgraded.
    """
    if not inspect(engine).has_table(LeaseRow.__tablename__):
        return upgrade_schema(engine)  # from before there was a lease
    lease = Lease(engine, clock)
    lease.take(wait)
    try:
        return upgrade_schema(engine)
    finally:
        lease.release()
