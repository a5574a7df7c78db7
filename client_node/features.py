"""Frozen activations: a recording's encoder states, computed once and kept on this site's disk.

Training an adapter of the decoder needs the encoder only as a fixed function, so its states are
exact to keep. Each recording is encoded alone, in a window that depends on its own length only:
nothing of one subject may depend on another's recordings.

Shape suffixes: S encoder states, D width.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from client_node.store import Recording
from model_core.audio import read_audio
from model_core.base import SpeechBase
from model_core.errors import AudioError
from model_core.features import MAX_WINDOW_S
from model_core.training import encode

MARGIN_S = 1.0  # teacher forcing needs no room to hear the end, as decoding does
MIN_WINDOW_S = 4.0
RECORDINGS_PER_SHARD = 64
Progress = Callable[[int, int], None]
"""Called with (done, total) recordings."""


def window_for(duration_s: float) -> float:
    """Window of a clip: the clip and the margin, in whole seconds so that like clips batch."""
    return min(max(float(math.ceil(duration_s + MARGIN_S)), MIN_WINDOW_S), MAX_WINDOW_S)


class FeatureStore:
    """Encoder states by recording, in safetensors shards of one base."""

    def __init__(self, folder: Path, base: SpeechBase) -> None:
        """`folder` is the site's `features/`; each base has its own folder inside."""
        self._base = base
        self._folder = folder / base.base_sha256[:16]
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._shards: dict[str, Path] = {}
        for shard in sorted(self._folder.glob("*.safetensors")):
            self._note(shard)

    def prepare(self, recordings: Sequence[Recording], progress: Progress | None = None) -> int:
        """Encode and keep what is missing; returns how many recordings cannot be used.

        A recording cannot be used when its file is gone, changed or unreadable, or too long.
        """
        unusable = 0
        missing = [r for r in recordings if r.audio_sha256 not in self._shards]
        for start in range(0, len(missing), RECORDINGS_PER_SHARD):
            encoded: dict[str, Tensor] = {}
            for recording in missing[start : start + RECORDINGS_PER_SHARD]:
                states_SD = self._encode(recording)
                if states_SD is None:
                    unusable += 1
                else:
                    encoded[recording.audio_sha256] = states_SD
                if progress is not None:
                    progress(start + len(encoded), len(missing))
            self._keep(encoded)
        return unusable

    def states(self, recording: Recording) -> Tensor | None:
        """States [S, D] float16 of `recording`, encoded now if need be; None if unusable."""
        if recording.audio_sha256 not in self._shards:
            self.prepare([recording])
        shard = self._shards.get(recording.audio_sha256)
        if shard is None:
            return None
        try:
            with safe_open(shard, framework="pt") as file:
                states_SD: Tensor = file.get_tensor(recording.audio_sha256)
        except (OSError, SafetensorError):
            # Forgotten since it was listed, or damaged. A round that failed would tell of it.
            return None
        return states_SD

    def _encode(self, recording: Recording) -> Tensor | None:
        path = Path(recording.path)
        try:
            if hashlib.sha256(path.read_bytes()).hexdigest() != recording.audio_sha256:
                return None
            samples_N = read_audio(path)
            states_BSD = encode(self._base, [samples_N], window_for(recording.duration_s))
        except (OSError, AudioError):
            return None
        return states_BSD[0].contiguous()

    def _keep(self, encoded: dict[str, Tensor]) -> None:
        if not encoded:
            return
        name = hashlib.sha256("".join(sorted(encoded)).encode()).hexdigest()[:32]
        shard = self._folder / f"{name}.safetensors"
        _write_shard(shard, encoded)
        self._note(shard)

    def _note(self, shard: Path) -> None:
        with safe_open(shard, framework="pt") as file:
            self._shards.update(dict.fromkeys(file.keys(), shard))


def forget_states(folder: Path, hashes: Collection[str]) -> int:
    """Delete the states of recordings named by hash, for every base; returns how many there were.

    For consent withdrawn: a running service no longer samples them, and now nothing is left.
    """
    gone = 0
    for shard in _shards(folder):
        kept = load_file(shard)
        before = len(kept)
        for name in hashes:
            kept.pop(name, None)
        if len(kept) == before:
            continue
        gone += before - len(kept)
        if kept:
            _write_shard(shard, kept)
        else:
            shard.unlink()
    return gone


def _shards(folder: Path) -> Iterable[Path]:
    return sorted(folder.glob("*/*.safetensors"))


def _write_shard(shard: Path, states: dict[str, Tensor]) -> None:
    scratch = shard.with_suffix(".partial")
    scratch.touch(mode=0o600)
    save_file(states, scratch)
    scratch.chmod(0o600)
    scratch.replace(shard)
