"""The private log: what must be provable, and must not be counted by another party.

A ledger's size leaves with each of its heads, so an entry made on a subject's account (a withdrawal
of consent) would be seen from outside by its number. Such entries go to a second log of the same
key. Each round binds it to the ledger: an entry with 256 fresh random bits is appended to the
private log, and its Merkle root then stands in the ledger's `round.trained`. The root tells nothing
without those bits and fixes everything before them (a commitment in the random oracle model): the
private log can no longer be cut, edited or written anew, and the ledger grows alike in each round.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from privacy.ledger import Ledger
from privacy.ledger_entry import Entry, SignedTreeHead
from privacy.signing import Identity

BOUND = "round.bound"
PRIVATE_ROOT = "private_root"
SALT_BYTES = 32


class PrivateLog:
    """The private log beside the ledger `log_id`, in the same database, with the same key.

    Raises LedgerError when it does not verify, as `Ledger` does.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        log_id: str,
        clock: Callable[[], datetime],
        salt: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        """`salt(n)` gives n fresh random bytes in hex, of a cryptographic source."""
        self._log = Ledger(engine, identity, private_log_id(log_id), clock)
        self._salt = salt

    def append(self, kind: str, fields: Mapping[str, Any]) -> Entry:
        """Record one event, as `Ledger.append` does."""
        return self._log.append(kind, fields)

    def bind(self, job: str, round_: int) -> str:
        """Hex root over everything so far, for the ledger to hold."""
        salt = self._salt(SALT_BYTES)
        bound = self._log.append(BOUND, {"job": job, "round": round_, "salt": salt})
        return self._log.root(bound.index + 1)

    def rotate(self, successor: Identity, fields: Mapping[str, Any]) -> Entry:
        """Hand it on to another key, as `Ledger.rotate` does."""
        return self._log.rotate(successor, fields)

    def entries(self, start: int = 0, end: int | None = None) -> list[Entry]:
        """Entries [start, end), verified."""
        return self._log.entries(start, end)

    def tree_head(self) -> SignedTreeHead:
        """The signed head over everything committed."""
        return self._log.tree_head()

    def export(self, path: Path) -> SignedTreeHead:
        """Write it to `path`, as `Ledger.export` does."""
        return self._log.export(path)


def private_log_id(log_id: str) -> str:
    """Name of the private log that belongs to the ledger `log_id`."""
    return f"{log_id}/private"


def first_unbound(committed: Iterable[tuple[int, str]], bound: Iterable[str]) -> int | None:
    """Index of the first ledger entry whose commitment the private log does not have.

    Args:
        committed: (entry, root) of each commitment in the ledger, in order.
        bound: root of the private log after each `round.bound`, in order.
    """
    roots = iter(bound)
    for index, root in committed:
        # Consumes `roots`: the order must be the same. A crash may leave a binding unused.
        if root not in roots:
            return index
    return None
