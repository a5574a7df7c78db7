"""Recordings of every kind that people send, well made and not, as bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

import av
import numpy as np

from tests.client_node.http_harness import speechlike, wav

RATE_HZ = 16_000


def encoded(container: str, codec: str, rate_hz: int, *, channels: int = 1) -> bytes:
    """A second of sound in a container."""
    file = io.BytesIO()
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    with av.open(file, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate_hz, layout=layout)
        samples = np.stack([speechlike(1.0, rate_hz, seed) for seed in range(channels)])
        frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
        frame.sample_rate = rate_hz
        fits = av.AudioResampler(stream.format, layout, rate_hz, stream.frame_size or None)
        for part in [*fits.resample(frame), *fits.resample(None)]:
            output.mux(stream.encode(part))
        output.mux(stream.encode(None))
    return file.getvalue()


def ten_hours() -> bytes:
    """An MP3 of 36 MB: its frames stand alone, so one second is written 36,000 times."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as out:
        stream = out.add_stream("libmp3lame", rate=8_000, layout="mono")
        stream.bit_rate = 8_000
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8_064), np.int16), "s16p", "mono")
        frame.sample_rate = 8_000
        fits = av.AudioResampler(stream.format, "mono", 8_000, stream.frame_size)
        for part in fits.resample(frame):
            out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return file.getvalue() * 36_000


def video_only() -> bytes:
    """A film without sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return file.getvalue()


def with_sizes(riff: int, data: int) -> bytes:
    """A WAV whose header lies about its lengths."""
    sound = bytearray(wav(speechlike(1.0)))
    sound[4:8], sound[40:44] = struct.pack("<I", riff), struct.pack("<I", data)
    return bytes(sound)


def with_format(**fields: int) -> bytes:
    """A WAV whose header lies about its samples."""
    sound = bytearray(wav(speechlike(1.0)))
    places = {"kind": (20, "<H"), "channels": (22, "<H"), "rate": (24, "<I"), "bits": (34, "<H")}
    for name, value in fields.items():
        place, layout = places[name]
        struct.pack_into(layout, sound, place, value)
    return bytes(sound)


def nan_samples() -> bytes:
    """Floating-point WAV with one sample that is no number."""
    samples = speechlike(0.5)
    samples[77] = np.nan
    data = samples.astype("<f4").tobytes()
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1,
                       RATE_HZ, RATE_HZ * 4, 4, 32, b"data", len(data))  # fmt: skip
    return head + data


def _flac_half() -> bytes:
    whole = encoded("flac", "flac", 16_000)
    return whole[:80] + bytes(len(whole) - 80)


REFUSED: dict[str, Callable[[], bytes]] = {
    "0 bytes": lambda: b"",
    "1 byte": lambda: b"R",
    "header only": lambda: wav(np.zeros(0, np.float32)),
    "half a header": lambda: wav(speechlike(1.0))[:30],
    "video without audio": video_only,
    "NaN samples": nan_samples,
    "raw bytes posing as PCM": lambda: speechlike(1.0).tobytes(),
    "random bytes": lambda: np.random.default_rng(0).bytes(50_000),
    "text": lambda: b"this is no sound\n" * 100,
    "a picture": lambda: b"\x89PNG\r\n\x1a\n" + bytes(500),
    "a page": lambda: b"<!doctype html><script>alert(1)</script>",
    "a playlist": lambda: b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
    "a list of files": lambda: b"ffconcat version 1.0\nfile /etc/hostname\n",
    "a session description": lambda: b"v=0\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "0 channels": lambda: with_format(channels=0),
    "60,000 channels": lambda: with_format(channels=60_000),
    "0 Hz": lambda: with_format(rate=0),
    "4 GHz": lambda: with_format(rate=2**32 - 1),
    "an unknown codec": lambda: with_format(kind=0x7777),
    "flac of zeros": _flac_half,
}

HEARD: dict[str, Callable[[], bytes]] = {
    "sizes of 4 GB": lambda: with_sizes(2**32 - 1, 2**32 - 1),
    "sizes of 0": lambda: with_sizes(0, 0xFFFFFFFF),
    "cut off": lambda: wav(speechlike(1.0))[:20_001],
    "bytes after the end": lambda: wav(speechlike(1.0)) + b"\x00" * 999,
    **{
        f"wav {rate_hz} Hz": lambda rate_hz=rate_hz: wav(speechlike(1.0, rate_hz), rate_hz)  # type: ignore[misc]
        for rate_hz in (8_000, 11_025, 44_100, 96_000, 192_000)
    },
    "flac 5.1": lambda: encoded("flac", "flac", 48_000, channels=6),
    "mp3": lambda: encoded("mp3", "libmp3lame", 44_100, channels=2),
    "ogg opus": lambda: encoded("ogg", "libopus", 48_000),
    "m4a": lambda: encoded("ipod", "aac", 44_100, channels=2),
    "webm opus": lambda: encoded("webm", "libopus", 48_000),
    "G.711 u-law": lambda: encoded("wav", "pcm_mulaw", 8_000),
    "G.711 A-law": lambda: encoded("wav", "pcm_alaw", 8_000),
}

RAW: dict[str, tuple[str, Callable[[], bytes]]] = {
    "call.g722": ("g722", lambda: encoded("g722", "g722", 16_000)),
    "call.ulaw": ("ulaw", lambda: encoded("mulaw", "pcm_mulaw", 8_000)),
    "call.pcma": ("alaw", lambda: encoded("alaw", "pcm_alaw", 8_000)),
}
