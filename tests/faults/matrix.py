"""The rows of docs/faults.md: which tests are the fault matrix."""

from __future__ import annotations

import re
from pathlib import Path

TABLE = Path(__file__).parents[2] / "docs" / "faults.md"
_TEST = re.compile(r"`(tests/[a-z0-9_/]+\.py)::(test_[a-z0-9_]+)`")


def rows() -> list[tuple[str, str]]:
    """(file, test) of each row, in order."""
    return [(found[1], found[2]) for found in _TEST.finditer(TABLE.read_text(encoding="utf-8"))]
