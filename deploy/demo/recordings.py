"""People's recordings instead of synthetic ones: one manifest with a site for every line."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections import defaultdict
from pathlib import Path
from typing import Any

from client_node.manifest import ManifestRow, read_manifest
from deploy.errors import CommandError

MANIFEST_NAME = "manifest.jsonl"
HELDOUT_SHARE = 5  # one subject in five is held out where the manifest says nothing


@dataclasses.dataclass(frozen=True)
class RealSite:
    """One site of the manifest: how many subjects train, and the manifests written for it."""

    name: str
    subjects: int
    heldout: int
    manifest: Path
    others: Path


def split_by_site(folder: Path, target: Path) -> list[RealSite]:
    """Write a manifest for each site of `folder`'s, and one of the other sites' held-out lines.

    Where no line names a split, every fifth subject of a site is held out, chosen by a hash of the
    subject, so that the split does not depend on the order of lines. Raises ManifestError, or
    CommandError where there is no manifest, no site or nobody to train on.
    """
    rows = _rows(folder)
    by_site: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        by_site[str(row.site)].append(_line(row))
    if all(row.split == "train" for row in rows):
        for lines in by_site.values():
            _hold_out(lines)
    target.mkdir(parents=True, exist_ok=True)
    return [_write(name, by_site, target) for name in sorted(by_site)]


def _rows(folder: Path) -> list[ManifestRow]:
    path = folder / MANIFEST_NAME if folder.is_dir() else folder
    if not path.is_file():
        raise CommandError(
            f"{path} does not exist",
            remedy=f"give a folder with {MANIFEST_NAME}: audio, text, subject and site a line",
            code="recordings-missing",
        )
    rows = read_manifest(path)
    if any(row.site is None for row in rows) or len({row.site for row in rows}) < 2:
        raise CommandError(
            f"{path} does not give every recording to one of at least two sites",
            remedy="add a column `site` that says whose recording each line is",
            code="recordings-site",
        )
    return rows


def _hold_out(lines: list[dict[str, Any]]) -> None:
    subjects = sorted(
        {line["subject"] for line in lines}, key=lambda s: (zlib.crc32(s.encode()), s)
    )
    held_out = set(subjects[: max(1, len(subjects) // HELDOUT_SHARE)])
    for line in lines:
        if line["subject"] in held_out:
            line["split"] = "heldout"


def _shuffled(subject: str) -> tuple[int, str]:
    return zlib.crc32(subject.encode()), subject


def _line(row: ManifestRow) -> dict[str, Any]:
    line = {"audio": str(row.audio), "text": row.text, "subject": row.subject, "split": row.split}
    optional = {"language": row.language, "terms": list(row.terms), "consent": row.consent}
    return line | {name: value for name, value in optional.items() if value is not None}


def _write(name: str, by_site: dict[str, list[dict[str, Any]]], target: Path) -> RealSite:
    mine = by_site[name]
    others = [
        line
        for site, lines in by_site.items()
        if site != name
        for line in lines
        if line["split"] == "heldout"
    ]
    subjects = len({line["subject"] for line in mine if line["split"] == "train"})
    if subjects == 0:
        raise CommandError(
            f"site {name} has nobody to train on",
            remedy="give it recordings of at least two subjects",
            code="recordings-site",
        )
    manifest, others_manifest = target / f"{name}.jsonl", target / f"{name}-others.jsonl"
    for path, lines in ((manifest, mine), (others_manifest, others)):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return RealSite(
        name, subjects, sum(line["split"] == "heldout" for line in mine), manifest, others_manifest
    )
