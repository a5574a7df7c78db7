"""The site's log: codes, counts and seconds, by construction (invariant I5).

There is no way to pass text to it: an event is a code, its fields are numbers. What a person needs
to read about a fault is shown on the console and never written here.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import traceback
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

MAX_LOG_BYTES = 4 << 20
BACKUPS = 3
_CODE = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


class SiteLog:
    """Writes one JSON object a line to `logs/site.log`, rotating by size."""

    def __init__(self, folder: Path, clock: Callable[[], datetime]) -> None:
        """`folder` exists; `clock` gives aware UTC times."""
        path = folder / "site.log"
        path.touch(mode=0o600)
        self._clock = clock
        self._handler = logging.handlers.RotatingFileHandler(
            path, maxBytes=MAX_LOG_BYTES, backupCount=BACKUPS, encoding="utf-8"
        )

    def event(self, code: str, **numbers: float) -> None:
        """Record `code` with its counts, sizes or seconds.

        Raises ValueError for a code that is not kebab-case and TypeError for a field that is not a
        number, which is how text would get in.
        """
        if not _CODE.fullmatch(code):
            raise ValueError("a log code is kebab-case")
        if not all(isinstance(value, int | float) for value in numbers.values()):
            raise TypeError("a log field is a number")
        self._write({"event": code, **numbers})

    def fault(self, error: BaseException) -> None:
        """Record where `error` was raised: its class and code lines, never its words or values."""
        frames = [
            f"{Path(frame.filename).stem}:{frame.lineno}"
            for frame in traceback.extract_tb(error.__traceback__)
        ]
        self._write({"event": "fault", "class": type(error).__name__, "frames": frames})

    def close(self) -> None:
        """Close the file."""
        self._handler.close()

    def _write(self, fields: Mapping[str, object]) -> None:
        line = json.dumps({"at": self._clock().isoformat(), **fields})
        self._handler.emit(logging.makeLogRecord({"msg": line, "levelno": logging.INFO}))
