"""Reading recordings: any common container and rate to 16 kHz mono float32.

PyAV (FFmpeg's libraries) decodes, because it reads what soundfile misses (m4a, webm, amr, g722);
soxr resamples at its high quality setting.
"""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import soxr
import torch
from torch import Tensor

from model_core.errors import AudioError

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
    try:
        samples, source_hz = _decode(path)
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise AudioError(
            f"the recording {path} cannot be decoded: {type(error).__name__}",
            remedy="check that the file plays; convert it to WAV or FLAC if it does",
            code="audio-unreadable",
        ) from error
    if samples.size == 0:
        raise _empty(path, "it decodes to no samples")
    if not np.isfinite(samples).all():
        raise AudioError(
            f"the recording {path} has samples that are no numbers",
            remedy="export it again; floating-point audio may hold NaN after a faulty filter",
            code="audio-unreadable",
        )
    if source_hz != rate_hz:
        samples = soxr.resample(samples, source_hz, rate_hz)
    samples = samples / max(1.0, float(np.abs(samples).max()))
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def _decode(path: Path) -> tuple[np.ndarray, int]:
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.audio[0]
        source_hz = int(stream.codec_context.sample_rate)
        to_float = av.AudioResampler(format="fltp", rate=source_hz)
        pieces = [
            frame.to_ndarray().mean(axis=0)
            for decoded in container.decode(stream)
            for frame in to_float.resample(decoded)
        ]
        pieces += [frame.to_ndarray().mean(axis=0) for frame in to_float.resample(None)]
    joined = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    return joined.astype(np.float32, copy=False), source_hz


def _empty(path: Path, what: str) -> AudioError:
    return AudioError(
        f"the recording {path} holds no sound: {what}",
        remedy="record it again or leave it out",
        code="audio-empty",
    )
