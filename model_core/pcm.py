"""Any usual container and codec to mono float32 at one rate, piece by piece, in bounded memory.

PyAV (FFmpeg's libraries) decodes, because it reads what soundfile misses (m4a, webm, amr, g722);
soxr resamples at its high quality setting. No torch here: the decoder's process need not load it.
Formats that only point at other files (playlists, session descriptions) are not opened.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import BinaryIO

import av
import numpy as np
import soxr

from model_core.errors import AudioError

RAW_TELEPHONY = {
    "g722": ("g722", {}),
    "ulaw": ("mulaw", {"sample_rate": "8000", "ch_layout": "mono"}),
    "alaw": ("alaw", {"sample_rate": "8000", "ch_layout": "mono"}),
}
"""G.722 and G.711 without a container: FFmpeg's format and options. Nothing in the bytes tells."""

_CONTAINERS = (
    "wav,w64,flac,mp3,ogg,matroska,webm,mov,mp4,m4a,3gp,3g2,mj2,aac,amr,amrnb,amrwb,aiff,au,caf,"
    "asf,mpegts,mpeg,g722,mulaw,alaw,gsm"
)
_CODECS = (
    "pcm_u8,pcm_s8,pcm_s16le,pcm_s16be,pcm_s24le,pcm_s24be,pcm_s32le,pcm_s32be,pcm_f32le,pcm_f32be,"
    "pcm_f64le,pcm_f64be,pcm_mulaw,pcm_alaw,g722,g726,g726le,gsm,gsm_ms,adpcm_ms,adpcm_ima_wav,flac,"
    "alac,mp3,mp3float,mp2,mp2float,aac,aac_latm,opus,libopus,vorbis,amrnb,amrwb,libopencore_amrnb,"
    "libopencore_amrwb,ac3,eac3,wmav1,wmav2,wmapro"
)
_NAMED_CONTAINERS = {"format_whitelist": _CONTAINERS, "codec_whitelist": _CODECS}


def mono_pieces(
    source: str | BinaryIO, rate_hz: int, *, name: str, raw: str | None = None
) -> Iterator[np.ndarray]:
    """Decode the first audio stream: arrays of mono float32 at `rate_hz`, in order; maybe none.

    Channels are averaged; amplitudes are those of the file, which may exceed 1. `name` is what a
    fault calls the recording, `raw` a key of `RAW_TELEPHONY`. Raises AudioError
    (audio-unreadable), also after some pieces.
    """
    try:
        decoded = _resampled(_decoded(source, raw), rate_hz)
        for piece in decoded:
            if not np.isfinite(piece).all():
                raise AudioError(
                    f"{name} has samples that are no numbers",
                    remedy="export it again; floating-point audio may hold NaN after a filter",
                    code="audio-unreadable",
                )
            yield piece
    except (av.error.FFmpegError, ValueError, IndexError) as error:
        raise AudioError(
            f"{name} cannot be decoded: {type(error).__name__}",
            remedy="check that the file plays; convert it to WAV or FLAC if it does",
            code="audio-unreadable",
        ) from error


def _decoded(source: str | BinaryIO, raw: str | None) -> Iterator[tuple[np.ndarray, int]]:
    """Mono samples as decoded, each piece with its rate."""
    container_format, options = RAW_TELEPHONY[raw] if raw else (None, _NAMED_CONTAINERS)
    with av.open(
        source, format=container_format, options=dict(options), metadata_errors="ignore"
    ) as container:
        stream = container.streams.audio[0]
        to_float = av.AudioResampler(format="fltp")
        for frame in container.decode(stream):
            for part in to_float.resample(frame):
                yield part.to_ndarray().mean(axis=0, dtype=np.float32), part.sample_rate


def _resampled(pieces: Iterable[tuple[np.ndarray, int]], rate_hz: int) -> Iterator[np.ndarray]:
    resampler: soxr.ResampleStream | None = None
    for samples, source_hz in pieces:
        if source_hz == rate_hz:
            yield samples
            continue
        if resampler is None:
            resampler = soxr.ResampleStream(source_hz, rate_hz, 1, dtype="float32")
        yield resampler.resample_chunk(samples)
    if resampler is not None:
        yield resampler.resample_chunk(np.zeros(0, np.float32), last=True)
