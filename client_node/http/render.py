"""Heard segments as json, text, verbose_json, srt and vtt; every text is inert.

Formats: OpenAI's API reference (audio) for JSON, W3C WebVTT §4 for vtt; srt has no standard, its
times are those of the first SubRip.
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from transformers.models.whisper.tokenization_whisper import LANGUAGES

from model_core.guards import compression_ratio
from model_core.transcribe import Segment

_DIRECTIONS = frozenset("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_CENTISECONDS = 100


def inert(text: str) -> str:
    """Text that no terminal obeys and no reader misreads: controls and directions are dropped."""
    return "".join(
        character
        for character in text
        if unicodedata.category(character) != "Cc" and character not in _DIRECTIONS
    )


def joined(segments: Iterable[Segment]) -> str:
    """The whole text."""
    return " ".join(inert(segment.text) for segment in segments)


def verbose(
    segments: Sequence[Segment],
    *,
    task: str,
    language: str,
    duration_s: float,
    temperature: float,
    release: str | None,
    granularities: Iterable[str],
) -> dict[str, Any]:
    """OpenAI's verbose_json; beyond it, `release` and each word's `confidence`."""
    answer: dict[str, Any] = {
        "task": task,
        "language": LANGUAGES.get(language, language),
        "duration": round(duration_s, 3),
        "text": joined(segments),
    }
    if "segment" in granularities:
        answer["segments"] = [
            _segment(number, segment, temperature) for number, segment in enumerate(segments)
        ]
    if "word" in granularities:
        answer["words"] = [
            {
                "word": inert(word.text),
                "start": round(word.start_s, 3),
                "end": round(word.end_s, 3),
                "confidence": round(word.confidence, 4),
            }
            for segment in segments
            for word in segment.words
        ]
    return {**answer, "release": release}


def _segment(number: int, segment: Segment, temperature: float) -> dict[str, Any]:
    text = inert(segment.text)
    return {
        "id": number,
        "seek": int(segment.start_s * _CENTISECONDS),
        "start": round(segment.start_s, 3),
        "end": round(segment.end_s, 3),
        "text": text,
        "tokens": list(segment.ids),
        "temperature": temperature,
        "avg_logprob": segment.mean_log_probability,
        "compression_ratio": compression_ratio(text),
        "no_speech_prob": segment.no_speech_probability,
    }


def srt(segments: Iterable[Segment]) -> str:
    """SubRip subtitles."""
    return "".join(
        f"{number}\n{_time(segment.start_s, ',')} --> {_time(segment.end_s, ',')}\n"
        f"{_cue_text(segment)}\n\n"
        for number, segment in enumerate(segments, start=1)
    )


def vtt(segments: Iterable[Segment]) -> str:
    """WebVTT subtitles."""
    cues = "".join(
        f"{_time(segment.start_s, '.')} --> {_time(segment.end_s, '.')}\n{_cue_text(segment)}\n\n"
        for segment in segments
    )
    return f"WEBVTT\n\n{cues}"


def _cue_text(segment: Segment) -> str:
    """Escaped, so that it is neither markup nor the arrow of a cue."""
    return html.escape(inert(segment.text), quote=False)


def _time(seconds: float, point: str) -> str:
    whole_ms = round(seconds * 1000)
    minutes, ms = divmod(whole_ms, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{ms // 1000:02}{point}{ms % 1000:03}"
