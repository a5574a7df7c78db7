"""How a release does on the coordinator's public test set: recordings that belong to no site."""

from __future__ import annotations

import hashlib
from pathlib import Path

import rfc8785

from coordinator.errors import CoordinatorError
from model_core.adapter import load_adapter
from model_core.base import load_base, rebased
from model_core.errors import ModelCoreError
from model_core.evaluation import Recording, Scores, evaluate, read_manifest
from privacy.parcel import Measured, ReleaseEvaluation

_DIGITS = 6  # of a rate: more would tell processors apart, not releases


def evaluate_release(manifest: Path, base_folder: Path, adapter: bytes) -> ReleaseEvaluation:
    """Transcribe the manifest's recordings with the base, and with the adapter merged into it.

    Gives word and character error rate, and the share of terms recognised where there are any.
    Raises CoordinatorError with the model room's codes.
    """
    try:
        recordings = read_manifest(manifest)
        base = load_base(base_folder)
        before = evaluate(base, recordings).overall
        released = rebased(base, load_adapter(base.model, adapter).merged())
        after = evaluate(released, recordings).overall
    except ModelCoreError as error:
        raise CoordinatorError(error.problem, remedy=error.remedy, code=error.code) from error
    return ReleaseEvaluation(
        data_sha256=_fingerprint(recordings),
        recordings=after.recordings,
        measured=_measured(before, after),
    )


def _measured(before: Scores, after: Scores) -> tuple[Measured, ...]:
    figures = [("wer", before.wer, after.wer), ("cer", before.cer, after.cer)]
    if total := after.terms_total:
        right = before.terms_right / total, after.terms_right / total
        figures.append(("term_accuracy", *right))
    return tuple(
        Measured(name, round(base, _DIGITS), round(release, _DIGITS))
        for name, base, release in figures
    )


def _fingerprint(recordings: list[Recording]) -> str:
    rows = [
        {
            "audio_sha256": hashlib.sha256(one.audio.read_bytes()).hexdigest(),
            "language": one.language,
            "terms": list(one.terms),
            "text": one.text,
        }
        for one in recordings
    ]
    return hashlib.sha256(rfc8785.dumps(rows)).hexdigest()
