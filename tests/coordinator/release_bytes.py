"""Makes one release of a nano model from fixed inputs; as a program it prints its hashes."""

from __future__ import annotations

import hashlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import torch

from coordinator.model_artifacts import SpeechArtifacts
from coordinator.model_card import card_text
from coordinator.planning import make_plan
from coordinator.release import Labels, Parent, make_manifest, write_files
from coordinator.request import AdapterRequest
from model_core.base import save_base
from model_core.nano import nano_base
from privacy.ledger import Ledger
from privacy.parcel import Measured, ReleaseEvaluation
from privacy.signing import Identity, seal
from privacy.store import open_engine
from tests.coordinator.fakes import request

AT_S = 1_800_000_000.0
EVALUATION = ReleaseEvaluation("d" * 64, 3, (Measured("wer", 0.5, 0.25),))


def release_hashes(folder: Path, key: Path) -> dict[str, str]:
    """SHA-256 of each file of the release, by name."""
    torch.set_num_threads(1)
    base = folder / "base"
    save_base(nano_base(), base)
    adapter_request = AdapterRequest(rank=2, target_modules=(r"model\.decoder\..*(q_proj|fc1)",))
    asked = request(base_folder=base, adapter=adapter_request)
    artifacts = SpeechArtifacts()
    made = artifacts.prepare(base, asked.adapter)
    plan = make_plan(asked, made, ["north", "south"], job="0a", issued_at_s=AT_S)
    adapter = artifacts.export(base, plan.adapter, made.basis, made.initial + 0.125)
    identity, engine = Identity.load(key), open_engine(f"sqlite:///{folder / 'auricle.db'}")
    ledger = Ledger(engine, identity, "coordinator", lambda: datetime(2026, 1, 1, tzinfo=UTC))
    ledger.append("job.planned", {"job": "0a"})
    manifest = make_manifest(
        plan,
        adapter,
        ledger,
        AT_S,
        parent=Parent("before", "e" * 64),
        evaluation=EVALUATION,
        labels=Labels("mit"),
    )
    engine.dispose()
    card = card_text(manifest, plan)
    written = write_files(folder / "release", seal(manifest, identity), adapter, card)
    return {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in written.iterdir()}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(release_hashes(Path(sys.argv[1]), Path(sys.argv[2]))))
