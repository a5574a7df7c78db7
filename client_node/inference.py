"""On-site transcription with the active release, or the base where none is active.

A swap of release takes effect at the next recording: the pointer is compared before each one, and
a changed pointer means that the release is read and verified anew, onto a base whose hash was
checked when it was read (invariant I3).
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from client_node.model_store import ModelStore
from model_core.adapter import load_adapter
from model_core.audio import read_audio
from model_core.base import SpeechBase, load_base
from model_core.cached_decoder import Precision
from model_core.transcribe import Transcriber, Transcript

LoadTranscriber = Callable[[bytes | None], Transcriber]
"""Makes a transcriber from an adapter's safetensors bytes; None is the bare base."""


@dataclasses.dataclass(frozen=True)
class Transcription:
    """A transcript and the release that made it; None is the base model."""

    transcript: Transcript
    release: str | None


def transcriber_loader(
    base_folder: Path,
    base_sha256: str,
    prompt_terms: Sequence[str] = (),
    *,
    precision: Precision = "float32",
) -> LoadTranscriber:
    """Loader over a base on disk, which is read and its hash checked at the first call.

    An adapter works on a twin of the base's modules, so one base serves every release.
    """

    @functools.cache
    def verified_base() -> SpeechBase:
        return load_base(base_folder, expected_sha256=base_sha256)

    def load(adapter_bytes: bytes | None) -> Transcriber:
        base = verified_base()
        adapter = None if adapter_bytes is None else load_adapter(base.model, adapter_bytes)
        return Transcriber(
            base, adapter=adapter, prompt_terms=tuple(prompt_terms), precision=precision
        )

    return load


class SiteTranscriber:
    """Transcribes with whatever the model store says serves. Safe to call from many threads."""

    def __init__(self, store: ModelStore, load: LoadTranscriber) -> None:
        """Nothing is loaded until the first recording or `warm_up`."""
        self._store = store
        self._load = load
        self._lock = threading.Lock()
        self._loaded: tuple[str | None, Transcriber] | None = None

    @property
    def release(self) -> str | None:
        """Name of the release that the next recording is transcribed with; None is the base."""
        return self._store.active_id

    def current(self) -> tuple[str | None, Transcriber]:
        """What serves: a release's name (None for the base) and its transcriber.

        Raises ReleaseError, SignatureError or WeightsError when what should serve does not verify
        (nothing unverified is ever used instead).
        """
        loaded, release = self._loaded, self._store.active_id
        if loaded is not None and loaded[0] == release:
            return loaded  # nobody waits for a lock but while a model is loaded
        with self._lock:
            release = self._store.active_id
            if self._loaded is None or self._loaded[0] != release:
                self._loaded = None  # the old model's memory goes before the new one's comes
                verified = None if release is None else self._store.load(release)
                self._loaded = release, self._load(verified.adapter if verified else None)
            return self._loaded

    def warm_up(self) -> None:
        """Load now. Raises like `current`."""
        self.current()

    def transcribe(self, path: Path) -> Transcription:
        """Transcribe one audio file of any rate and usual container, decoded in this process.

        Raises AudioError for the file, and like `current`.
        """
        samples = read_audio(path)
        release, transcriber = self.current()
        return Transcription(transcriber.transcribe(samples), release)
