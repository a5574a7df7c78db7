"""A site of `benchmarks.round_overhead`: everything real but the training.

    python -m benchmarks.round_overhead_site HOME INVITE BASE

Real enrolment, SuperNode, warm worker, agent, budget, ledger, outbox and receipts. Training is
replaced by `InstantTrainer`, whose update is new in every byte each round: Flower sends an object
that the other side has under the same hash no second time.
"""

# ruff: noqa: ARG002 - stand-ins take what the real parts take
from __future__ import annotations

import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from client_node.assembly import SiteParts, open_agent, open_parts
from client_node.enrol import join
from client_node.home import SiteHome, SiteSettings
from client_node.keys import renew_runtime_secret
from client_node.policy import default_policy
from client_node.site_log import SiteLog
from client_node.supernode import LOOPBACK, free_port, start_supernode, stop_supernode
from client_node.trainer import TrainedUpdate
from privacy.plan import RoundPlan
from privacy.probes import PROBES, ProbeReceipt, ProbeResult
from privacy.secure_aggregation.fixed_point import FixedPoint, pack_integers

PURPOSE = "benchmark"
_PASSED = ProbeReceipt(tuple(ProbeResult(name, "passed") for name in PROBES))


class InstantTrainer:
    """Answers noise of the plan's scale at once: one fixed draw, scaled anew each round."""

    random_source = "benchmark"

    def __init__(self, site: str) -> None:
        self._random = np.random.default_rng(list(site.encode()))
        self._base_D = np.zeros(0, np.float32)

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        """Draw the noise before the first round."""
        deviation = np.float32(plan.noise_multiplier * plan.clipping_norm)
        self._base_D = deviation * self._random.standard_normal(plan.adapter.size, np.float32)

    def check_weights(self, plan: RoundPlan, basis: bytes, vector: bytes) -> None:
        """Take any weights."""

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        """The draw times a number in [0.9, 1.1)."""
        update_D = self._base_D * np.float32(self._random.uniform(0.9, 1.1))
        if plan.privacy_mode != "secure-aggregation":
            return TrainedUpdate(update_D.tobytes(), _PASSED)
        integers_D = np.rint(update_D / FixedPoint.of(plan).step).astype(np.int64)
        return TrainedUpdate(pack_integers(integers_D), _PASSED)


def main(folder: Path, invite: Path, base: Path) -> None:
    """Join, and serve until the SuperNode ends."""
    # flwr reads the environment at import; `start_supernode` sets it for its own process.
    from client_node.flower_worker import FlowerWorker

    home = SiteHome(folder)
    home.create()
    SiteSettings(site=folder.name, base_folder=str(base)).save(home.settings)
    default_policy(home.policy, purposes={PURPOSE: 1e9})
    rules = home.policy.read_text(encoding="utf-8")
    rules = rules.replace("max_upload_bytes = 16_777_216", "max_upload_bytes = 1_000_000_000")
    home.policy.write_text(rules.replace('"*decoder*"', '"*"'), encoding="utf-8")
    join(home, invite, datetime.now(UTC))
    log = SiteLog(home.logs, lambda: datetime.now(UTC))

    def trainer(parts: SiteParts) -> InstantTrainer:
        return InstantTrainer(parts.settings.site)

    agent = open_agent(open_parts(home), log, make_trainer=trainer)
    settings = SiteSettings.load(home.settings)
    secret, port = renew_runtime_secret(home), free_port()
    supernode = start_supernode(home, settings, port)
    stop = threading.Event()

    def stop_with_supernode() -> None:
        supernode.wait()
        stop.set()

    threading.Thread(target=stop_with_supernode, daemon=True).start()
    try:
        FlowerWorker(f"{LOOPBACK}:{port}", secret, agent.handle, agent.refuse, log).run(stop)
    finally:
        stop_supernode(supernode)


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:4]))
