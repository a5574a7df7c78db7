"""A disk that fills up at one step of a round, for real: a small tmpfs of this process alone.

Usage: full_disk.py STEP FOLDER, as a process in a mount namespace of its own (`test_disk_full.py`
starts it). It asserts nothing: what happened is printed as one JSON object.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from client_node.model_store import ModelStore
from client_node.trainer import TrainedUpdate
from coordinator.job import JobLoop
from coordinator.release import ADAPTER_FILE
from coordinator.status import job_status
from model_core.base import SpeechBase
from model_core.nano import nano_base
from privacy.parcel import Parcel
from privacy.plan import RoundPlan
from privacy.signing import Identity
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.client_node.test_release import adapter_bytes
from tests.coordinator.fakes import Federation, StepLink, request

NAMESPACE = ("unshare", "--map-root-user", "--mount")
SIZE = "24m"


class Disk:
    """A file system of `SIZE` in `folder`."""

    def __init__(self, folder: Path) -> None:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)], check=True
        )
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave not one byte free."""
        with self._ballast.open("ab", buffering=0) as file:
            for size_bytes in (1 << 16, 1 << 12, 1):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size_bytes)):
                        pass

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink()


class Filling(CountingTrainer):
    """The disk fills up while the round is being trained."""

    def __init__(self, fill: Callable[[], None]) -> None:
        super().__init__()
        self.fill = fill

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        trained = super().train(plan, basis, round_, vector, arrivals)
        self.fill()
        return trained


def answered(site: Site, ask: Callable[[], Parcel]) -> str:
    """The kind of the answer, a refusal's code, or the code of what stopped the agent."""
    try:
        reply = ask()
    except Exception as error:  # noqa: BLE001 - it is what the story tells
        return f"stopped: {getattr(error, 'code', type(error).__name__)}"
    return reply.kind if reply.kind != "refused" else site.answer(reply).code


def site_story(disk: Disk, root: Path, step: str, nano: SpeechBase) -> dict[str, object]:
    """A site's disk fills up at `step`, and has room again afterwards."""
    coordinator = Coordinator(Identity.generate())
    site = Site(root / "north", nano, coordinator)
    plan, basis = make_plan(nano)
    trainer = Filling(disk.fill if step == "update" else lambda: None)
    agent = site.agent(trainer)
    agent.handle(coordinator.prepare(plan, basis))
    asked = coordinator.order(plan, 1)
    if step == "release":
        asked = coordinator.release(plan, adapter_bytes(nano, plan, basis), release="r-one")
    if step != "update":
        disk.fill()
    told = {"full": answered(site, lambda: agent.handle(asked)), "drawn_full": trainer.draws}
    models = ModelStore(site.home.releases, (coordinator.identity.public,), nano.base_sha256)
    told["active_full"] = models.active_id
    disk.free()
    trainer.fill = lambda: None
    agent = site.agent(trainer)  # a supervisor starts it again
    told["after"] = answered(site, lambda: agent.handle(asked))
    told["active_after"] = models.active_id
    told["next"] = answered(site, lambda: agent.handle(coordinator.order(plan, 2)))
    state = site.books()[1].spent(plan.purpose)
    told |= {"drawn": trainer.draws, "reserved": state.reserved, "committed": state.committed}
    return told | {"ledger": site.audit().valid}


def coordinator_story(disk: Disk, root: Path, step: str) -> dict[str, object]:
    """The coordinator's disk fills up in round 2, or before the release is signed."""
    federation = Federation(root)
    job = federation.operations.submit(request(rounds=2))
    loop = JobLoop(job, federation.tools, StepLink(federation.sites))
    export = federation.tools.artifacts.export

    def fill_and_export(*args: object) -> bytes:
        disk.fill()
        return export(*args)

    if step == "coordinator release":
        federation.tools.artifacts.export = fill_and_export
    told: dict[str, object] = {}
    try:
        while not loop.step():
            if step == "coordinator ledger" and federation.tools.jobs.load(job).rounds_done:
                disk.fill()
    except Exception as error:  # noqa: BLE001 - it is what the story tells
        told["full"] = f"stopped: {getattr(error, 'code', type(error).__name__)}"
    disk.free()
    federation.tools.artifacts.export = export
    JobLoop(job, federation.tools, StepLink(federation.sites)).run(federation.clock.wait)
    status = job_status(federation.engine, job, ())
    released = root / "releases" / str(status.release) / ADAPTER_FILE
    told |= {"state": status.state, "admitted": status.updates_admitted}
    return told | {"released": released.is_file()}


def main(step: str, folder: Path) -> None:
    """Tell one story."""
    torch.set_num_threads(1)
    disk = Disk(folder)
    if step.startswith("coordinator"):
        told = coordinator_story(disk, folder, step)
    else:
        told = site_story(disk, folder, step, nano_base())
    print(json.dumps(told))  # noqa: T201 - the outcome, read by the test


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
