"""Reading a recording as a whole: any common container and rate to 16 kHz mono float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model_core.errors import AudioError
from model_core.pcm import mono_pieces

RATE_HZ = 16_000


def read_audio(path: Path, *, rate_hz: int = RATE_HZ) -> Tensor:
    """Decode the first audio stream to mono float32 in [-1, 1]: [N] samples at `rate_hz`.

    Channels are averaged. Floating-point audio beyond full scale is turned down, not clipped.
    Raises AudioError: `audio-missing`, `audio-empty` (no bytes or no
    samples) or `audio-unreadable`.
    """
    if not path.is_file():
        raise AudioError(
            f"there is no recording at {path}",
            remedy="correct the path; relative paths are read from the working directory",
            code="audio-missing",
        )
    if path.stat().st_size == 0:
        raise _empty(path, "it has 0 bytes")
    pieces = list(mono_pieces(str(path), rate_hz, name=f"the recording {path}"))
    samples = np.concatenate([np.zeros(0, np.float32), *pieces])
    if samples.size == 0:
        raise _empty(path, "it decodes to no samples")
    samples = samples / max(1.0, float(np.abs(samples).max()))
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def _empty(path: Path, what: str) -> AudioError:
    return AudioError(
        f"the recording {path} holds no sound: {what}",
        remedy="record it again or leave it out",
        code="audio-empty",
    )
