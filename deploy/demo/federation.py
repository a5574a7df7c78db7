"""A whole federation on this machine: a coordinator and its sites, each a process of its own.

Everything is done by the commands that a person would type, in the order of the README's tour, so
that the demo shows nothing that a real federation does not do.
"""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from client_node.features import RECORDINGS_PER_SHARD
from client_node.home import SiteHome
from client_node.policy import default_policy
from deploy.cli.admin_client import AdminClient
from deploy.coordinator import admin_address
from deploy.demo.processes import Processes, ProcessFailedError, auricle
from deploy.demo.screen import RoundView
from deploy.errors import OfflineError

POLL_S = 0.25
START_TIMEOUT_S = 180.0
PREPARE_TIMEOUT_S = 3600.0
ENDED = ("released", "abandoned")


@dataclasses.dataclass(frozen=True)
class SiteSetup:
    """One institution: its name and the manifest of its recordings."""

    name: str
    manifest: Path


class Federation:
    """A coordinator and sites in folders under `root`; `processes` owns what runs."""

    def __init__(
        self,
        root: Path,
        base_folder: Path,
        sites: Sequence[SiteSetup],
        processes: Processes,
        *,
        epsilon_cap: float,
        delta: float,
        unprotected: bool = False,
    ) -> None:
        """`unprotected` lets sites train without noise: synthetic recordings only."""
        self.root = root
        self.sites = tuple(sites)
        self._base_folder = base_folder
        self._processes = processes
        self._epsilon_cap = epsilon_cap
        self._delta = delta
        self._unprotected = unprotected
        self._pause = threading.Event()
        self._trained_on: dict[str, int] = {}

    @property
    def coordinator_home(self) -> Path:
        """The coordinator's home folder."""
        return self.root / "coordinator"

    def site_home(self, name: str) -> Path:
        """A site's home folder."""
        return self.root / "sites" / name

    def found(self, purpose: str) -> None:
        """Make every home, start the coordinator, and let the sites join and import."""
        port, admin_port = _free_ports(2)
        self._processes.run_json(
            auricle(
                *("coordinator", "init", "--home", self.coordinator_home),
                *("--bind", "127.0.0.1", "--name", "localhost", "--name", "127.0.0.1"),
                *("--port", str(port), "--admin-port", str(admin_port)),
                *("--base-folder", self._base_folder),
            )
        )
        self._processes.start(
            "coordinator",
            auricle("coordinator", "start", "--home", self.coordinator_home),
            self.root / "logs" / "coordinator.log",
        )
        self._wait("the coordinator serves", lambda: self._sites_online() is not None)
        self._each(lambda site: ("init", site.name, "--base-folder", str(self._base_folder)))
        self._set_policies(purpose)
        for site in self.sites:
            invite = str(self._invite(site.name))
            home = str(self.coordinator_home)
            self._processes.run_json(
                auricle(
                    *("coordinator", "invite", site.name, "--approve"),
                    *("--home", home, "--out", invite),
                )
            )
        self._each(lambda site: ("join", str(self._invite(site.name))))
        reports = self._each(lambda site: ("import", str(site.manifest)))
        self._trained_on = {
            name: report["recordings"] - report["held_out"] for name, report in reports.items()
        }

    @property
    def recordings(self) -> int:
        """Recordings that sites train on, over all of them."""
        return sum(self._trained_on.values())

    def start_sites(self, show: Callable[[int], None]) -> None:
        """Start every site's service and wait until the coordinator sees all of them.

        `show` is told how many recordings have been encoded, in whole shards.
        """
        for site in self.sites:
            self._processes.start(
                site.name,
                auricle("site", "start", "--home", self.site_home(site.name)),
                self.root / "logs" / f"{site.name}.log",
            )

        def online() -> bool:
            show(min(self._encoded(), self.recordings))
            return self._sites_online() == len(self.sites)

        self._wait("every site is online", online, PREPARE_TIMEOUT_S)
        show(self.recordings)

    def run_job(
        self, request: Mapping[str, Any], show: Callable[[RoundView], None]
    ) -> dict[str, Any]:
        """Run one job to its end and return its last status.

        Raises ProcessFailedError where a process died or the job was abandoned.
        """
        fields = {**request, "base_folder": str(self._base_folder)}
        with self._admin() as admin:
            job = admin.post("/admin/jobs", fields)["job"]
            while True:
                status: dict[str, Any] = admin.get(f"/admin/jobs/{job}")
                show(self._view(status))
                if status["state"] in ENDED:
                    break
                self._processes.check_alive()
                self._pause.wait(POLL_S)
        if status["state"] == "abandoned":
            raise ProcessFailedError(
                f"the job was abandoned: {status['reason']}",
                remedy=f"read the logs in {self.root / 'logs'}",
            )
        return status

    def evaluate(self, general: Mapping[str, Path] | None) -> dict[str, dict[str, Any]]:
        """`auricle site evaluate` at every site at once, by name.

        `general` gives each site a manifest of other recordings; without it only the release is
        scored, on the site's own.
        """

        def command(site: SiteSetup) -> tuple[str, ...]:
            if general is None:
                return ("evaluate", "--release-only")
            return ("evaluate", "--general", str(general[site.name]))

        return self._each(command)

    def statuses(self) -> dict[str, dict[str, Any]]:
        """`auricle site status` at every site, by name."""
        return self._each(lambda _: ("status",))

    def ledgers_verified(self) -> dict[str, bool]:
        """Whether `auricle ledger verify` finds each ledger whole, by site or "coordinator"."""
        homes = {site.name: self.site_home(site.name) for site in self.sites}
        homes["coordinator"] = self.coordinator_home
        reports = self._processes.run_all(
            {name: auricle("ledger", "verify", "--home", home) for name, home in homes.items()}
        )
        return {name: bool(report["valid"]) for name, report in reports.items()}

    def training_seconds(self, name: str) -> float:
        """Seconds that a site spent on rounds, from its own log."""
        lines = (self.site_home(name) / "logs" / "site.log").read_text().splitlines()
        events = [json.loads(line) for line in lines]
        return float(sum(e["seconds"] for e in events if e.get("event") == "parcel-update"))

    def reuse_features(self, cache: Path) -> None:
        """Link encoder states that an earlier run has computed from the same audio."""
        for site in self.sites:
            _link_tree(cache / site.name, self.site_home(site.name) / "features")

    def keep_features(self, cache: Path) -> None:
        """Link the sites' encoder states for the next run."""
        for site in self.sites:
            _link_tree(self.site_home(site.name) / "features", cache / site.name)

    def _encoded(self) -> int:
        homes = [self.site_home(site.name) / "features" for site in self.sites]
        shards = sum(len(list(home.glob("*/*.safetensors"))) for home in homes)
        return shards * RECORDINGS_PER_SHARD

    def _view(self, status: Mapping[str, Any]) -> RoundView:
        return RoundView(
            round=status["rounds_done"],
            rounds=status["rounds"],
            sites_online=sum(bool(site["online"]) for site in status["sites"]),
            updates=status["updates_admitted"],
            epsilon_loc=status["epsilon_loc"],
            epsilon_cap=self._epsilon_cap,
        )

    def _each(self, command: Callable[[SiteSetup], tuple[str, ...]]) -> dict[str, dict[str, Any]]:
        """Run one `auricle site` command at every site, at once; what each printed, by name."""
        return self._processes.run_all(
            {
                site.name: auricle("site", *command(site), "--home", self.site_home(site.name))
                for site in self.sites
            }
        )

    def _set_policies(self, purpose: str) -> None:
        for site in self.sites:
            default_policy(
                SiteHome(self.site_home(site.name)).policy,
                purposes={purpose: self._epsilon_cap},
                delta=self._delta,
                allow_unprotected=self._unprotected,
            )

    def _invite(self, name: str) -> Path:
        return self.root / "invites" / f"{name}.invite"

    def _admin(self) -> AdminClient:
        return AdminClient(*admin_address(self.coordinator_home))

    def _sites_online(self) -> int | None:
        """How many sites are online; None while the coordinator does not answer."""
        try:
            with self._admin() as admin:
                return sum(bool(site["online"]) for site in admin.get("/admin/sites"))
        except OfflineError:
            return None

    def _wait(
        self, what: str, holds: Callable[[], bool], timeout_s: float = START_TIMEOUT_S
    ) -> None:
        for _ in range(int(timeout_s / POLL_S)):
            if holds():
                return
            self._processes.check_alive()
            self._pause.wait(POLL_S)
        raise ProcessFailedError(
            f"after {timeout_s:.0f} s it is still not so that {what}",
            remedy=f"read the logs in {self.root / 'logs'}",
        )


def _link_tree(source: Path, target: Path) -> None:
    """Hard links: shards are never written again, so both folders may own them."""
    if not source.is_dir():
        return
    for shard in source.glob("*/*.safetensors"):
        link = target / shard.parent.name / shard.name
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            link.hardlink_to(shard)


def _free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
