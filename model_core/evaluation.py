"""Evaluation of a model on a manifest: what was said, what was heard, and how they compare.

A manifest is JSON lines with `audio` (relative to the manifest's folder), `text`, and optionally
`language` and `terms` (a list, or text with semicolons between); other fields are passed over, so
a site's own manifest in JSON lines will do. The report holds counts and rates only, no text and no
path.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase
from model_core.calibration import Calibration, calibration, score_words
from model_core.errors import ManifestError
from model_core.evaluate import character_error_rate, normalise, term_accuracy, word_error_rate
from model_core.transcribe import Transcriber, Transcript

DEFAULT_LANGUAGE = "en"
_BATCH = 16


@dataclass(frozen=True)
class Recording:
    """A line of a manifest: a recording, what is said in it, and the terms among it."""

    audio: Path
    text: str
    language: str
    terms: tuple[str, ...]


@dataclass(frozen=True)
class Scores:
    """How well a set of recordings was transcribed.

    Attributes:
        recordings: how many.
        audio_s: their seconds.
        words: of the references, normalised.
        wer: word errors per reference word.
        cer: character errors per reference character.
        terms_right: occurrences of terms that were transcribed.
        terms_total: occurrences of terms in the references.
        calibration: of the words' confidences; None where no word was heard.
    """

    recordings: int
    audio_s: float
    words: int
    wer: float
    cer: float
    terms_right: int
    terms_total: int
    calibration: Calibration | None


@dataclass(frozen=True)
class Report:
    """Scores of all recordings and of each language; `compute_s` is transcription's wall clock."""

    overall: Scores
    by_language: Mapping[str, Scores]
    compute_s: float


@dataclass(frozen=True)
class _Heard:
    recording: Recording
    text: str
    words: tuple[tuple[str, float], ...]
    audio_s: float


def read_manifest(path: Path) -> list[Recording]:
    """Read a manifest. Raises ManifestError naming the first line at fault."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(
            f"the manifest {path} cannot be read: {type(error).__name__}",
            remedy="give a file of JSON lines in UTF-8",
            code="manifest-missing",
        ) from error
    recordings = [_recording(n, line, path) for n, line in enumerate(lines, 1) if line.strip()]
    if not any(normalise(recording.text) for recording in recordings):
        raise ManifestError(
            f"the manifest {path} has no recording with a word in its text",
            remedy="give each recording's transcript as `text`",
        )
    return recordings


def evaluate(base: SpeechBase, recordings: Sequence[Recording]) -> Report:
    """Transcribe every recording in its language and compare. Raises AudioError, TextError."""
    heard: list[_Heard] = []
    compute_s = 0.0
    languages = sorted({recording.language for recording in recordings})
    for language in languages:
        transcriber = Transcriber(base, language=language)
        mine = [recording for recording in recordings if recording.language == language]
        for start in range(0, len(mine), _BATCH):
            batch = mine[start : start + _BATCH]
            clips = [read_audio(recording.audio) for recording in batch]
            began_s = time.perf_counter()
            transcripts = transcriber.transcribe_many(clips, words=True)
            compute_s += time.perf_counter() - began_s
            heard += [
                _Heard(recording, transcript.text, _confidences(transcript), len(clip) / RATE_HZ)
                for recording, transcript, clip in zip(batch, transcripts, clips, strict=True)
            ]
    by_language = {
        language: _scores([each for each in heard if each.recording.language == language])
        for language in languages
    }
    return Report(_scores(heard), by_language, compute_s)


def _scores(heard: Sequence[_Heard]) -> Scores:
    references = [each.recording.text for each in heard]
    texts = [each.text for each in heard]
    words = sum(len(normalise(reference).split()) for reference in references)
    terms = [
        term_accuracy([each.recording.text], [each.text], each.recording.terms) for each in heard
    ]
    return Scores(
        recordings=len(heard),
        audio_s=sum(each.audio_s for each in heard),
        words=words,
        wer=word_error_rate(references, texts),
        cer=character_error_rate(references, texts),
        terms_right=sum(score.right for score in terms),
        terms_total=sum(score.total for score in terms),
        calibration=calibration(
            pair for each in heard for pair in score_words(each.recording.text, each.words)
        ),
    )


def _confidences(transcript: Transcript) -> tuple[tuple[str, float], ...]:
    words = (word for segment in transcript.segments for word in segment.words)
    return tuple((word.text, word.confidence) for word in words)


def _recording(line: int, text: str, path: Path) -> Recording:
    try:
        fields = json.loads(text)
        audio, said = _text(fields, "audio"), _text(fields, "text")
        language = _text(fields, "language") if fields.get("language") else DEFAULT_LANGUAGE
        terms = _terms(fields.get("terms") or ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ManifestError(
            f"line {line} of {path} is no recording: {type(error).__name__}: {error}",
            remedy='write one JSON object a line: {"audio": "a.wav", "text": "what is said"}',
        ) from error
    return Recording(path.parent / audio, said, language, terms)


def _terms(value: Any) -> tuple[str, ...]:
    parts = value.split(";") if isinstance(value, str) else list(value)
    return tuple(str(part).strip() for part in parts if str(part).strip())


def _text(fields: Mapping[str, Any], name: str) -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise TypeError(f"{name} is not text")
    return value
