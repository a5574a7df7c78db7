"""Whether this machine's clock agrees with the coordinator's, as Flower's authentication asks."""

from __future__ import annotations

from email.utils import parsedate_to_datetime

# Flower's node authentication accepts a clock at most 5 s ahead and 300 s behind.
MAX_AHEAD_S = 5.0
MAX_BEHIND_S = 300.0


def ahead_s(date: str, now_s: float) -> float:
    """Seconds by which `now_s` is ahead of an HTTP `Date`. Raises ValueError where it is none."""
    return now_s - parsedate_to_datetime(date).timestamp()


def agrees(ahead: float) -> bool:
    """Whether a clock that is `ahead` seconds ahead may take part."""
    return -MAX_BEHIND_S < ahead < MAX_AHEAD_S
