"""Releases: the trained adapter, its signed manifest and its card, as stored and as files.

The same job, parent, ledger and time give the same bytes, whatever process makes them. The database
row is the release; the files are a copy for people and pages, written again whenever they are
missing, so a crash between the two loses nothing.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from coordinator.planning import guarantees
from privacy.ledger import Ledger
from privacy.parcel import ReleaseEvaluation, ReleaseManifest
from privacy.plan import RoundPlan
from privacy.signing import PublicIdentity, open_statement, payload_type_of

ADAPTER_FILE = "adapter.safetensors"
MANIFEST_FILE = "manifest.dsse.json"
CARD_FILE = "README.md"  # the hub's name for a model card


@dataclasses.dataclass(frozen=True)
class Parent:
    """The release that a new one replaces; `manifest_sha256` is of its manifest as signed."""

    release: str
    manifest_sha256: str


@dataclasses.dataclass(frozen=True)
class Labels:
    """What the operator says of all releases, in the hub's words; "" where nothing is said.

    `base_model` is the base's name on the Hugging Face hub, such as "openai/whisper-tiny.en".
    """

    license: str = "unknown"
    base_model: str = ""


NO_LABELS = Labels()

Evaluate = Callable[[Path, bytes], ReleaseEvaluation]
"""Measures the base in a folder without and with an adapter, on the public test set."""


def make_manifest(
    plan: RoundPlan,
    adapter: bytes,
    ledger: Ledger,
    issued_at_s: float,
    *,
    parent: Parent | None = None,
    evaluation: ReleaseEvaluation | None = None,
    labels: Labels,
) -> ReleaseManifest:
    """The manifest of the trained `adapter` of `plan`'s job; a release is named by its content."""
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
        parent=None if parent is None else parent.release,
        tree_head=head.root,
        tree_size=head.size,
        issued_at=datetime.fromtimestamp(issued_at_s, UTC).isoformat(timespec="seconds"),
        epsilon_loc=epsilon_loc,
        epsilon_sec=epsilon_sec,
        delta=plan.delta,
        parent_sha256=None if parent is None else parent.manifest_sha256,
        evaluation=evaluation,
        license=labels.license,
        base_model=labels.base_model,
    )


def manifest_sha256(statement: bytes, signer: PublicIdentity) -> str:
    """Hex SHA-256 of the signed manifest in the envelope `statement`. Raises SignatureError."""
    payload = open_statement(statement, payload_type_of(ReleaseManifest), (signer,))
    return hashlib.sha256(payload).hexdigest()


def write_files(folder: Path, statement: bytes, adapter: bytes, card: str) -> Path:
    """Copy a release to `folder`, and return it. Each file is whole or not there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    files = {ADAPTER_FILE: adapter, MANIFEST_FILE: statement, CARD_FILE: card.encode()}
    for name, content in files.items():
        _write_whole(folder / name, content)
    return folder


def _write_whole(path: Path, content: bytes) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
