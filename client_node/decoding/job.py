"""What the service and its decoder process say to each other. Imports nothing heavy.

The service sends one datagram a recording, a `Job` as JSON with three open files: the recording,
a file for the samples, and a pipe for one `Outcome` as JSON. No path crosses: the decoder can open
nothing.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any, Self

RATE_HZ = 16_000
SAMPLE_BYTES = 4  # float32, little-endian
MAX_JOB_BYTES = 4096
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class DecodeLimits:
    """What one recording may cost.

    Attributes:
        duration_s: longest recording, in seconds of sound.
        cpu_s: CPU seconds of decoding.
        wall_s: seconds of decoding by the clock.
        memory_bytes: growth of the decoder's address space.
    """

    duration_s: float = 2 * 3600.0
    cpu_s: int = 120
    wall_s: float = 300.0
    memory_bytes: int = 256 * MIB

    @property
    def samples(self) -> int:
        """Most samples at `RATE_HZ`."""
        return int(self.duration_s * RATE_HZ)


@dataclasses.dataclass(frozen=True)
class Job:
    """One recording to decode; `raw` is a key of `model_core.pcm.RAW_TELEPHONY` or None."""

    limits: DecodeLimits
    raw: str | None

    def to_json(self) -> bytes:
        """The datagram."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read a datagram of `to_json`."""
        fields: dict[str, Any] = json.loads(data)
        return cls(DecodeLimits(**fields["limits"]), fields["raw"])


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a recording.

    Attributes:
        code: None where it was decoded, else the code of the AudioError.
        samples: samples written.
        peak: greatest amplitude, in file units (1 is full scale).
    """

    code: str | None
    samples: int = 0
    peak: float = 0.0

    def to_json(self) -> bytes:
        """One line for the pipe."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Read what `to_json` wrote. Raises ValueError for anything else."""
        try:
            fields: dict[str, Any] = json.loads(data)
            return cls(fields["code"], int(fields["samples"]), float(fields["peak"]))
        except (KeyError, TypeError) as error:
            raise ValueError("no outcome") from error
