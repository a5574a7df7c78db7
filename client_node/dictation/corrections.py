"""Corrected dictation kept as training recordings: the loop from use to the next round.

A correction goes through the same importer as every recording, so the same rules hold: one subject
a recording, the subject's split, consent once withdrawn stays withdrawn.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import wave
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile as sf

from client_node.errors import ManifestError
from client_node.home import SiteHome, SiteSettings, write_private
from client_node.importer import ImportReport, import_recordings
from client_node.store import SiteStore
from privacy.store import open_engine

MAX_PASSAGE_S = 30.0
_LEAST_RATE_HZ, _MOST_RATE_HZ = 8_000, 192_000


class Corrections:
    """Keeps corrected passages in a site's home."""

    def __init__(self, home: SiteHome) -> None:
        """`home` is an existing site's."""
        self._home = home

    def keep(self, passage: BinaryIO, text: str, subject: str) -> ImportReport:
        """Import one passage: a 16-bit mono WAV of at most 30 s, what was said, and who said it.

        The caller has the subject's consent. Raises ManifestError: `audio-unreadable` for any
        other sound, and the importer's codes for text and subject; nothing is kept then.
        """
        data = _as_flac(passage)
        folder = self._home.corrections
        folder.mkdir(mode=0o700, exist_ok=True)
        audio = folder / f"{hashlib.sha256(data).hexdigest()}.flac"
        was_there = audio.exists()
        manifest = (
            folder / f"{secrets.token_hex(16)}.jsonl"
        )  # the same sound may come twice at once
        write_private(audio, data)
        line = {"audio": audio.name, "text": text, "subject": subject, "consent": True}
        try:
            write_private(manifest, json.dumps(line).encode())
            return self._import(manifest)
        except Exception:
            if not was_there:
                audio.unlink()
            raise
        finally:
            manifest.unlink(missing_ok=True)

    def _import(self, manifest: Path) -> ImportReport:
        settings = SiteSettings.load(self._home.settings)
        engine = open_engine(self._home.database_url)
        try:
            return import_recordings(manifest, settings.site, SiteStore(engine))
        finally:
            engine.dispose()


def _as_flac(passage: BinaryIO) -> bytes:
    """The passage written anew, so that what is stored was never a stranger's file."""
    try:
        with wave.open(passage, "rb") as reader:
            rate_hz, frames = reader.getframerate(), reader.getnframes()
            if (reader.getnchannels(), reader.getsampwidth()) != (1, 2):
                raise _unreadable("it is not 16-bit mono")
            if not _LEAST_RATE_HZ <= rate_hz <= _MOST_RATE_HZ:
                raise _unreadable("its rate is out of range")
            if not 0 < frames <= MAX_PASSAGE_S * rate_hz:
                raise _unreadable(f"it is empty or longer than {MAX_PASSAGE_S:.0f} s")
            samples_N = np.frombuffer(reader.readframes(frames), "<i2")
    except (wave.Error, EOFError, ValueError) as error:
        raise _unreadable("it is no WAV file") from error
    if not len(samples_N):
        raise _unreadable("it is empty")
    written = io.BytesIO()
    sf.write(written, samples_N, rate_hz, format="FLAC", subtype="PCM_16")
    return written.getvalue()


def _unreadable(why: str) -> ManifestError:
    return ManifestError(
        f"the passage was not kept: {why}",
        remedy="send the passage as a 16-bit mono WAV",
        code="audio-unreadable",
    )
