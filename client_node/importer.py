"""Import of recordings: everything is checked, then everything is stored in one transaction."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

from client_node.manifest import Fault, ManifestRow, manifest_error, read_manifest
from client_node.store import NewRecording, SiteStore

SAMPLE_RATE_HZ = 16_000
Progress = Callable[[int, int], None]
"""Called with (done, total) recordings."""
MeasureAudio = Callable[[Path], float]
"""Seconds of an audio file; raises an error with the code audio-empty or audio-unreadable."""


@dataclasses.dataclass(frozen=True)
class ImportReport:
    """What an import did.

    Attributes:
        recordings: recordings of this site in the manifest.
        new: those not stored before.
        subjects: distinct subjects among them.
        duration_s: seconds of audio among them.
        repeated: lines whose audio was the same, byte for byte, as an earlier line's.
        elsewhere: lines that name another site, left alone.
        without_consent: recordings stored and never sampled.
        held_out: recordings kept for evaluation, never trained on.
    """

    recordings: int
    new: int
    subjects: int
    duration_s: float
    repeated: int
    elsewhere: int
    without_consent: int
    held_out: int


def measure_audio(path: Path) -> float:
    """Seconds of `path`, decoded whole so that an unreadable file is found now."""
    from model_core.audio import read_audio

    return len(read_audio(path, rate_hz=SAMPLE_RATE_HZ)) / SAMPLE_RATE_HZ


def import_recordings(
    manifest: Path,
    site: str,
    store: SiteStore,
    *,
    measure: MeasureAudio = measure_audio,
    progress: Progress | None = None,
) -> ImportReport:
    """Import the recordings that `manifest` gives to `site` (or to no site in particular).

    Raises ManifestError naming every fault; the store is then unchanged.
    """
    every = read_manifest(manifest)
    rows = [row for row in every if row.site in (None, site)]
    faults: list[Fault] = []
    recordings: dict[str, tuple[ManifestRow, NewRecording]] = {}
    for done, row in enumerate(rows):
        if progress is not None:
            progress(done, len(rows))
        try:
            recording = _check(row, measure)
        except Exception as error:
            code = getattr(error, "code", "")
            if not str(code).startswith("audio-"):
                raise
            faults.append(Fault(row.line, str(code), f"audio file {row.audio.name}: {error}"))
            continue
        first = recordings.setdefault(recording.audio_sha256, (row, recording))[1]
        if first.subject != recording.subject:
            faults.append(_same_audio(row))
    if progress is not None:
        progress(len(rows), len(rows))
    faults += _subject_faults(recordings, store)
    if faults:
        raise manifest_error(manifest, sorted(faults, key=lambda fault: fault.line))
    checked = [recording for _, recording in recordings.values()]
    return ImportReport(
        recordings=len(checked),
        new=store.add(checked),
        subjects=len({recording.subject for recording in checked}),
        duration_s=sum(recording.duration_s for recording in checked),
        repeated=len(rows) - len(checked),
        elsewhere=len(every) - len(rows),
        without_consent=sum(not recording.consent for recording in checked),
        held_out=sum(recording.split == "heldout" for recording in checked),
    )


def _check(row: ManifestRow, measure: MeasureAudio) -> NewRecording:
    duration_s = measure(row.audio)
    with row.audio.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return NewRecording(
        audio_sha256=digest,
        path=str(row.audio),
        text=row.text,
        subject=row.subject,
        split=row.split,
        language=row.language,
        duration_s=duration_s,
        terms=row.terms,
        consent=row.consent,
    )


def _subject_faults(
    recordings: dict[str, tuple[ManifestRow, NewRecording]], store: SiteStore
) -> list[Fault]:
    """Faults that would break the privacy unit, or test on a voice that was trained on."""
    stored = store.placements()
    splits = {name: split for sha, (name, split) in stored.items() if sha not in recordings}
    faults = []
    for sha, (row, recording) in recordings.items():
        if sha in stored and stored[sha][0] != recording.subject:
            faults.append(_same_audio(row))
        if splits.setdefault(recording.subject, recording.split) != recording.split:
            problem = "its subject is in both train and heldout"
            faults.append(Fault(row.line, "manifest-subject", problem))
    return faults


def _same_audio(row: ManifestRow) -> Fault:
    problem = f"audio file {row.audio.name} is also given to another subject"
    return Fault(row.line, "manifest-subject", problem)
