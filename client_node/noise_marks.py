"""Keyed marks of the noise of every round, so that noise used again is noticed after a restart.

A mark is a message authentication code of a few values of one draw under a key that never leaves
this database. Without the key it is a random number; with the key, it tells whether a draw came
back and nothing else that could be read off.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from sqlalchemy import Engine, select

from client_node.tables import NoiseMarkRow, ProbeKeyRow, open_schema
from privacy.store import writing

_KEY_BYTES = 32
_ONLY = 1


class StoredMarks:
    """`privacy.probes.NoiseMarks` in the site's database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        open_schema(engine)

    def key(self) -> bytes:
        """The site's 32 byte key, made at the first call."""
        with writing(self._engine) as session:
            row = session.get(ProbeKeyRow, _ONLY)
            if row is None:
                row = ProbeKeyRow(id=_ONLY, key=os.urandom(_KEY_BYTES))
                session.add(row)
            return row.key

    def note(self, marks: Sequence[str]) -> bool:
        """Keep `marks` durably; False where one of them was there before."""
        with writing(self._engine) as session:
            known = select(NoiseMarkRow.mark).where(NoiseMarkRow.mark.in_(marks))
            before = set(session.scalars(known))
            session.add_all(NoiseMarkRow(mark=mark) for mark in set(marks) - before)
        return not before
