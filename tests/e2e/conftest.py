"""One federation for all end-to-end tests: made once, by the commands that a person would type."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from deploy.ledgers import open_ledger, verify_home
from privacy.ledger_entry import Entry
from privacy.ledger_verify import Report
from tests.e2e.federation_run import SITES
from tests.e2e.namespace import UNSHARE, unshare_works

ROOT = Path(__file__).parents[2]
WATCH_VARIABLE = "AURICLE_NETWORK_WATCH"
LIMIT_S = 400.0


@dataclasses.dataclass(frozen=True)
class Federation:
    """What a run of `federation_run` left; every process of it has ended."""

    root: Path
    outcome: dict[str, Any]
    watch: Path

    @property
    def coordinator(self) -> Path:
        """The coordinator's home."""
        return self.root / "coordinator"

    def site(self, name: str) -> Path:
        """A site's home."""
        return self.root / "sites" / name

    @property
    def homes(self) -> dict[str, Path]:
        """Homes of all parties."""
        return {"coordinator": self.coordinator} | {name: self.site(name) for name in SITES}

    def entries(self, party: str, kind: str, job: str) -> list[Entry]:
        """Entries of one kind and job in a party's verified ledger."""
        book = open_ledger(self.homes[party])
        return [e for e in book.entries() if e.kind == kind and e.fields.get("job") == job]

    def report(self, party: str) -> Report:
        """A party's ledger, exported and verified by its public key."""
        return verify_home(self.homes[party])[0]

    def wire(self, direction: str) -> list[bytes]:
        """Plain bytes of each connection of the watched site: "sent" or "received"."""
        return [path.read_bytes() for path in sorted((self.root / "wire").glob(f"*.{direction}"))]

    @property
    def watched(self) -> list[str]:
        """Lines of the network watch."""
        return self.watch.read_text().splitlines()


def watched_environment(watch: Path) -> dict[str, str]:
    """An environment in which every Python process is watched and marked."""
    hook = ROOT / "tests" / "e2e" / "network_watch"
    paths = {"PYTHONPATH": f"{hook}{os.pathsep}{ROOT}", WATCH_VARIABLE: str(watch)}
    return os.environ | paths | {"OMP_NUM_THREADS": "1"}


def marked_processes(watch: Path) -> list[psutil.Process]:
    """Living processes of `watched_environment(watch)`, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            marked = process.environ().get(WATCH_VARIABLE) == str(watch)
            if marked and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue  # it ended meanwhile, or is another account's
    return found


@pytest.fixture(scope="session")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """A coordinator, three sites, three jobs and a killed coordinator."""
    root = tmp_path_factory.mktemp("federation")
    watch = root.parent / f"{root.name}-watch.log"
    isolated = unshare_works()
    command = [sys.executable, "-m", "tests.e2e.federation_run", str(root)]
    if isolated:
        command = [*UNSHARE, *command, "--isolated"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=watched_environment(watch),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    outcome = json.loads((root / "outcome.json").read_text())
    return Federation(root, outcome, watch)
