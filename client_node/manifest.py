"""The recordings manifest: JSON lines or CSV, one recording a line, read whole or not at all.

Columns: `audio` (path, relative to the manifest), `text`, `subject` are required; `split` ("train",
the default, or "heldout"), `site`, `language`, `duration_s`, `consent` (true by default: handing a
recording over is the site's statement of consent) and `terms` (the site's terms said in it, a list
or text with semicolons between) are optional. Every fault is found
before anything is imported, and named by its line.
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from client_node.errors import ManifestError
from client_node.store import Split

REQUIRED = ("audio", "text", "subject")
OPTIONAL = ("split", "site", "language", "duration_s", "consent", "terms")
FAULTS_SHOWN = 10
_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_REMEDIES = {
    "manifest-column": f"use only the columns {', '.join(REQUIRED + OPTIONAL)}",
    "manifest-text-empty": "give every recording its transcript, or leave the line out",
    "audio-missing": "correct the path (relative paths start at the manifest's folder)",
    "audio-empty": "record it again, or leave the line out",
    "audio-unreadable": "convert it to WAV or FLAC, or leave the line out",
    "manifest-subject": "give the same recording, and both splits, to one subject each",
}
_DEFAULT_REMEDY = "correct the manifest"


@dataclasses.dataclass(frozen=True)
class Fault:
    """One fault of a manifest: its line (0 for the whole file), a code, and words."""

    line: int
    code: str
    problem: str

    def __str__(self) -> str:
        """As shown to the person importing."""
        return f"line {self.line}: {self.problem}" if self.line else self.problem


@dataclasses.dataclass(frozen=True)
class ManifestRow:
    """One line of a manifest, its fields checked; the audio exists and is not empty."""

    line: int
    audio: Path
    text: str
    subject: str
    split: Split
    site: str | None
    language: str | None
    consent: bool
    terms: tuple[str, ...]


class _LineError(ValueError):
    def __init__(self, code: str, problem: str) -> None:
        super().__init__(problem)
        self.code = code


def manifest_error(path: Path, faults: list[Fault]) -> ManifestError:
    """The error for `faults` (at least one): its code is the first fault's."""
    shown = "\n".join(f"  {fault}" for fault in faults[:FAULTS_SHOWN])
    hidden = len(faults) - FAULTS_SHOWN
    more = f"\n  and {hidden} more" if hidden > 0 else ""
    first = faults[0].code
    return ManifestError(
        f"{path.name} was not imported, nothing was changed:\n{shown}{more}",
        remedy=f"{_REMEDIES.get(first, _DEFAULT_REMEDY)}; then import again",
        code=first,
    )


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read and check a manifest, `.csv` or JSON lines.

    Raises ManifestError naming every faulty line.
    """
    rows: list[ManifestRow] = []
    faults: list[Fault] = []
    try:
        for line, fields in _lines(path):
            try:
                rows.append(_row(line, fields, path.parent))
            except _LineError as error:
                faults.append(Fault(line, error.code, str(error)))
    except FileNotFoundError:
        faults.append(Fault(0, "manifest-missing", f"{path} does not exist"))
    except (UnicodeDecodeError, csv.Error) as error:
        faults.append(Fault(0, "manifest-format", f"it cannot be read as text: {error}"))
    if not rows and not faults:
        faults.append(Fault(0, "manifest-format", "it holds no recording"))
    if faults:
        raise manifest_error(path, faults)
    return rows


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        if path.suffix.lower() == ".csv":
            reader = csv.DictReader(file, strict=True)
            for fields in reader:
                # An empty cell is an absent optional column; required ones are reported as empty.
                yield (
                    reader.line_num,
                    {k: v for k, v in fields.items() if v != "" or k in REQUIRED},
                )
        else:
            yield from _json_lines(file)


def _json_lines(file: Iterable[str]) -> Iterator[tuple[int, Any]]:
    for line, text in enumerate(file, start=1):
        if text.strip():
            try:
                yield line, json.loads(text)
            except json.JSONDecodeError as error:
                yield line, _LineError("manifest-format", f"not valid JSON: {error.msg}")


def _row(line: int, fields: Any, folder: Path) -> ManifestRow:
    if isinstance(fields, _LineError):
        raise fields
    if not isinstance(fields, dict):
        raise _LineError("manifest-format", "not a JSON object")
    _check_columns(fields)
    return ManifestRow(
        line=line,
        text=_text(fields, "text", empty_code="manifest-text-empty"),
        audio=_audio(folder, _text(fields, "audio")),
        subject=_text(fields, "subject"),
        split=_split(fields.get("split", "train")),
        site=_optional_text(fields, "site"),
        language=_optional_text(fields, "language"),
        consent=_consent(fields.get("consent", True)),
        terms=_terms(fields.get("terms")),
    )


def _check_columns(fields: dict[Any, Any]) -> None:
    known = {*REQUIRED, *OPTIONAL}
    if None in fields:  # csv.DictReader files surplus cells under None
        raise _LineError("manifest-format", "more cells than columns")
    if unknown := sorted(str(name) for name in fields if name not in known):
        raise _LineError("manifest-column", f"unknown column {', '.join(unknown)}")
    if missing := [name for name in REQUIRED if fields.get(name) is None]:
        raise _LineError("manifest-column", f"column {', '.join(missing)} is missing")


def _text(fields: dict[str, Any], name: str, empty_code: str = "manifest-value") -> str:
    value = fields[name]
    if not isinstance(value, str):
        raise _LineError("manifest-value", f"{name} is not text")
    if not value.strip():
        words = "the transcript (text)" if name == "text" else name
        raise _LineError(empty_code, f"{words} is empty")
    return value.strip()


def _optional_text(fields: dict[str, Any], name: str) -> str | None:
    return None if fields.get(name) is None else _text(fields, name)


def _split(value: Any) -> Split:
    if value not in ("train", "heldout"):
        raise _LineError("manifest-value", 'split is neither "train" nor "heldout"')
    return cast(Split, value)


def _consent(value: Any) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower())
    if not isinstance(value, bool):
        raise _LineError("manifest-value", "consent is neither true nor false")
    return value


def _terms(value: Any) -> tuple[str, ...]:
    """A list of terms, or text with semicolons between them. Each must stand in the manifest's own
    line: which terms weigh in a recording's loss must depend on that recording's subject alone."""
    if value is None:
        return ()
    parts = value.split(";") if isinstance(value, str) else value
    if not isinstance(parts, list) or not all(isinstance(part, str) for part in parts):
        raise _LineError("manifest-value", "terms is neither a list of text nor text")
    return tuple(part.strip() for part in parts if part.strip())


def _audio(folder: Path, name: str) -> Path:
    path = folder / name
    if not path.is_file():
        raise _LineError("audio-missing", f"audio file {name} does not exist")
    if path.stat().st_size == 0:
        raise _LineError("audio-empty", f"audio file {name} is empty (0 bytes)")
    return path.resolve()
