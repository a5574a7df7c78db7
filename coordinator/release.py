"""Releases: the trained adapter and its signed manifest, as stored and as files.

The database row is the release; the files are a copy for people and pages, written again whenever
they are missing, so a crash between the two loses nothing.
"""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path

from coordinator.job_records import JobRecord
from coordinator.planning import guarantees
from privacy.ledger import Ledger
from privacy.parcel import ReleaseManifest

ADAPTER_FILE = "adapter.safetensors"
MANIFEST_FILE = "manifest.dsse.json"


def make_manifest(
    record: JobRecord, adapter: bytes, ledger: Ledger, issued_at_s: float
) -> ReleaseManifest:
    """The manifest of the job's trained `adapter`; a release is named by its content."""
    plan = record.plan
    adapter_sha256 = hashlib.sha256(adapter).hexdigest()
    epsilon_loc, epsilon_sec = guarantees(plan, plan.rounds)
    head = ledger.tree_head()
    return ReleaseManifest(
        release=f"{plan.job}-{adapter_sha256[:12]}",
        job=plan.job,
        rounds=plan.rounds,
        base_sha256=plan.base_sha256,
        plan_sha256=plan.sha256,
        adapter_sha256=adapter_sha256,
        parent=None,
        tree_head=head.root,
        tree_size=head.size,
        issued_at=datetime.fromtimestamp(issued_at_s, UTC).isoformat(timespec="seconds"),
        epsilon_loc=epsilon_loc,
        epsilon_sec=epsilon_sec,
        delta=plan.delta,
    )


def write_files(folder: Path, name: str, statement: bytes, adapter: bytes) -> Path:
    """Copy a release to `folder`/`name`; returns that folder. Whole files or none."""
    target = folder / name
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, content in ((ADAPTER_FILE, adapter), (MANIFEST_FILE, statement)):
        _write_whole(target / file, content)
    return target


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
