"""A site's process for the Flower contract test: real enrolment, SuperNode and warm worker.

Only the trainer is small: updates are a function of the round (tests.coordinator.fakes.FakeSite).
Usage: flower_site.py HOME INVITE [hold]

With "hold" it makes the file HOME/in-round when an order has come, and answers once HOME/go exists.
"""

from __future__ import annotations

import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from client_node.enrol import join
from client_node.home import SiteHome, SiteSettings
from client_node.keys import load_keys, renew_runtime_secret, trusted_coordinator
from client_node.policy import default_policy
from client_node.site_log import SiteLog
from client_node.supernode import LOOPBACK, free_port, start_supernode, stop_supernode
from privacy.parcel import Parcel
from tests.coordinator.fakes import FakeSite


class HeldSite(FakeSite):
    """Answers an order when it is told to."""

    folder: Path

    def update(self, job: str, number: int, weights: bytes) -> Parcel:
        made = super().update(job, number, weights)
        (self.folder / "in-round").touch()
        while not (self.folder / "go").exists():
            time.sleep(0.02)
        return made


def main(folder: Path, invite: Path, held: bool = False) -> None:
    """Join, serve until the SuperNode ends."""
    from client_node.flower_worker import FlowerWorker

    home = SiteHome(folder)
    home.create()
    SiteSettings(site=folder.name, base_folder="none", poll_s=0.05).save(home.settings)
    default_policy(home.policy)
    join(home, invite, datetime.now(UTC))
    site = FakeSite(folder.name, trusted_coordinator(home))
    site.identity = load_keys(home).identity
    if held:
        site.__class__, site.folder = HeldSite, folder
    secret, port = renew_runtime_secret(home), free_port()
    supernode = start_supernode(home, SiteSettings.load(home.settings), port)
    stop = threading.Event()
    threading.Thread(target=lambda: (supernode.wait(), stop.set()), daemon=True).start()
    log = SiteLog(home.logs, lambda: datetime.now(UTC))
    try:
        refuse = lambda code: site.answer("refused", "", "", code)  # noqa: E731
        FlowerWorker(f"{LOOPBACK}:{port}", secret, site, refuse, log).run(stop)
    finally:
        stop_supernode(supernode)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), held=sys.argv[3:] == ["hold"])
