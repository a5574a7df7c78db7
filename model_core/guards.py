"""Signs that decoded text was made up: Whisper invents speech and may repeat itself without end.

Each sign is a fact about one clip's own decoding (Radford et al. 2022, section 4.5, for the
thresholds of log-probability, compression and no speech).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

NO_SPEECH_PROBABILITY = 0.6
LEAST_LOG_PROBABILITY = -1.0
MOST_COMPRESSION = 2.4
_LONGEST_PHRASE = 12
_REPEATS = 4


def compression_ratio(text: str) -> float:
    """Bytes of the text ÷ bytes after zlib: near 1 for speech, high for repetition; 0 for ""."""
    data = text.encode()
    return len(data) / len(zlib.compress(data)) if data else 0.0


def _repeated_phrase(ids: Sequence[int]) -> int:
    """Length of a phrase that the ids end in `_REPEATS` times over; 0 if there is none.

    One token may come twice as often: digits are dictated ("zero zero zero zero").
    """
    for length in range(1, _LONGEST_PHRASE + 1):
        repeats = 2 * _REPEATS if length == 1 else _REPEATS
        tail = ids[-length * repeats :]
        if len(tail) == length * repeats and list(tail) == list(tail[:length]) * repeats:
            return length
    return 0


def runs_away(ids: Sequence[int]) -> bool:
    """Whether the ids end in the same phrase again and again."""
    return _repeated_phrase(ids) > 0


def without_repetition(ids: list[int]) -> list[int]:
    """Cut a runaway repetition down to its phrase said once."""
    length = _repeated_phrase(ids)
    if not length:
        return ids
    phrase = ids[-length:]
    while ids[-2 * length :] == phrase * 2:
        ids = ids[:-length]
    return ids
