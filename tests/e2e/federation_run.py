"""A whole federation from the command line, in a network namespace with nothing outside.

Usage: federation_run.py ROOT, as a process of its own: the namespace holds it, the recording proxy
and every process that it starts. It asserts nothing: what happened goes to ROOT/outcome.json, the
plain wire of one site to ROOT/wire, and the homes stay for the tests to look into.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from client_node.home import SiteHome, write_private
from client_node.policy import default_policy
from coordinator.home import CoordinatorHome
from coordinator.registry import INVITE_TYPE
from coordinator.tls import Credential, make_server
from deploy.cli import main as cli
from deploy.cli.admin_client import AdminClient
from deploy.coordinator import admin_address
from deploy.demo.processes import Processes, Running, auricle
from deploy.errors import OfflineError
from model_core.nano import write_nano_checkpoint
from privacy.signing import Identity, open_statement, seal_statement
from tests.e2e.namespace import raise_loopback, unroutable_attempts
from tests.e2e.recording_proxy import RecordingProxy
from tests.e2e.recordings import SUBJECTS, write_site

CONTROL_HOST = "192.0.2.1"  # TEST-NET-1, RFC 5737: nobody
SITES = ("north", "south", "west")
WATCHED = "north"
PURPOSE = "transcription"
DELTA = 1e-5
EPSILON_CAP = 4.0
LIMIT_S = 120.0
POLL_S = 0.05
ROUNDS = 3
UPLOAD = b"POST /v1/fleet/push-messages"

REQUEST: dict[str, Any] = {
    "purpose": PURPOSE,
    "sampling_rate": 1.0,  # every subject is in every round, the canary's too
    "clipping_norm": 1.0,
    "delta": DELTA,
    "noise_multiplier": 4.0,
    "expected_subjects": SUBJECTS + 1,
    "deadline_s": LIMIT_S,
    "adapter": {
        "kind": "core",
        "rank": 32,
        "target_modules": [
            r"model\.decoder\.layers\.\d+\.(self_attn|encoder_attn)\.(q|k|v|out)_proj"
        ],
        "target_parameters": [r"model\.decoder\..*experts\.(up|down)_proj"],
    },
}


def auricle_here(*words: str | Path) -> dict[str, Any]:
    """Run a short command in this process, which has the libraries loaded; what it printed."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.run([*map(str, words), "--json"])
    shown: dict[str, Any] = json.loads(printed.getvalue())
    if status != 0:
        raise RuntimeError(f"auricle {' '.join(map(str, words))}: {shown}")
    return shown


def free_ports(count: int) -> list[int]:
    """Loopback ports that were free a moment ago, all different."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


@dataclasses.dataclass
class Story:
    """The federation in `root` and what is done to it, act by act."""

    root: Path
    server: Processes
    sites: Processes
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.port, self.admin_port = free_ports(2)
        self.home = CoordinatorHome(self.root / "coordinator")
        self.base = self.root / "base"
        self.running: dict[str, Running] = {}

    def found(self) -> None:
        """Base model, coordinator's home, and the coordinator's process."""
        checkpoint = write_nano_checkpoint(self.root / "checkpoint")
        auricle_here("base", "prepare", checkpoint, "--folder", self.base)
        auricle_here(
            *("coordinator", "init", "--home", self.home.root, "--base-folder", self.base),
            *("--bind", "127.0.0.1", "--name", "localhost", "--name", "127.0.0.1"),
            *("--port", str(self.port), "--admin-port", str(self.admin_port)),
        )
        self.start("coordinator", self.home.root)

    def join(self, proxy_port: int) -> None:
        """Each site: home, policy, invite, enrolment, recordings, process."""
        self.wait_for(lambda: self.ask("/admin/sites") is not None)
        for index, site in enumerate(SITES):
            home, invite = SiteHome(self.root / "sites" / site), self.root / f"{site}.invite"
            auricle_here("site", "init", site, "--home", home.root, "--base-folder", self.base)
            default_policy(home.policy, purposes={PURPOSE: EPSILON_CAP}, delta=DELTA)
            at = ("--home", self.home.root, "--out", invite)
            auricle_here("coordinator", "invite", site, "--approve", *at)
            if site == WATCHED:
                self._lead_through(proxy_port, invite)
            auricle_here("site", "join", invite, "--home", home.root)
            manifest = write_site(self.root / "private" / site, 300.0 + 200 * index)
            auricle_here("site", "import", manifest, "--home", home.root)
            self.start(site, home.root)
        self.wait_for(self._all_online)

    def _lead_through(self, proxy_port: int, invite: Path) -> None:
        """The invite with the proxy's address, signed again by the coordinator's key."""
        identity = Identity.load(self.home.identity_file)
        fields = json.loads(
            open_statement(invite.read_bytes(), INVITE_TYPE, (identity.public,))
        ) | {"coordinator_url": f"https://localhost:{proxy_port}"}
        payload = json.dumps(fields).encode()
        write_private(invite, seal_statement(payload, INVITE_TYPE, identity))

    def job(self, rounds: int) -> str:
        """Start a job by `auricle round start`; its name."""
        request = self.root / "request.json"
        request.write_text(json.dumps(REQUEST | {"rounds": rounds}))
        more = ("--request", request, "--base-folder", self.base)
        return str(auricle_here("round", "start", "--home", self.home.root, *more)["job"])

    def start(self, name: str, home: Path) -> None:
        """Start a role's long-lived process."""
        serves = name == "coordinator"
        owner, role = (self.server, "coordinator") if serves else (self.sites, "site")
        log = self.root / "logs" / f"{name}.log"
        self.running[name] = owner.start(name, auricle(role, "start", "--home", home), log)

    def kill_coordinator(self) -> None:
        """SIGKILL: nothing is said or saved."""
        process = self.running["coordinator"].process
        process.send_signal(signal.SIGKILL)
        process.wait()

    def restart_coordinator(self) -> None:
        """Start it again, and wait until it answers."""
        self.start("coordinator", self.home.root)
        self.wait_for(lambda: self.ask("/admin/sites") is not None)

    def status(self, job: str) -> dict[str, Any]:
        """The job's status as the coordinator tells it."""
        told = self.ask(f"/admin/jobs/{job}")
        assert told is not None, "the coordinator does not answer"
        return dict(told)

    def end_of(self, job: str) -> dict[str, Any]:
        """The status of a job that has been released or abandoned."""
        self.wait_for(lambda: self.status(job)["state"] in ("released", "abandoned"))
        return self.status(job)

    def ask(self, path: str) -> Any:
        """GET from the admin listener; None while nobody answers."""
        try:
            with AdminClient(*admin_address(self.home.root)) as admin:
                return admin.get(path)
        except OfflineError:
            return None

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Wait until `holds()`. Raises TimeoutError after LIMIT_S, or where a process has died."""
        end, pause = time.monotonic() + LIMIT_S, threading.Event()
        while not holds():
            for name, running in self.running.items():
                if running.process.poll() is not None:
                    raise RuntimeError(f"{name} ended: {running.log.read_text()[-2000:]}")
            if time.monotonic() > end:
                raise TimeoutError("an awaited state did not come")
            pause.wait(POLL_S)

    @contextlib.contextmanager
    def act(self, name: str) -> Iterator[None]:
        """Time a part of the story."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)

    def _all_online(self) -> bool:
        return sum(bool(site["online"]) for site in self.ask("/admin/sites") or ()) == len(SITES)


def restarted_job(story: Story, proxy: RecordingProxy, outcome: dict[str, Any]) -> dict[str, Any]:
    """A job whose coordinator is killed after round 1, with an update of round 2 on its way."""
    proxy.hold(UPLOAD, let_by=2)  # the plan's answer and the update of round 1
    job = story.job(ROUNDS)
    story.wait_for(proxy.held.is_set)
    outcome["killed"] = story.status(job)
    story.kill_coordinator()
    proxy.let_go()
    story.restart_coordinator()
    return story.end_of(job)


def tell(story: Story, proxy: RecordingProxy, outcome: dict[str, Any]) -> None:
    """The acts, in order."""
    with story.act("join"):
        story.join(proxy.port)
    with story.act("first job"):
        outcome["first"] = story.end_of(story.job(ROUNDS))
    with story.act("restarts"):
        outcome["restarted"] = restarted_job(story, proxy, outcome)
    with story.act("over the cap"):
        outcome["over_cap"] = story.end_of(story.job(40))
    with story.act("stop"):
        story.sites.stop()  # first: a SuperNode that finds its coordinator gone tries for long
        story.server.stop()
    outcome["exit_statuses"] = {n: r.process.returncode for n, r in story.running.items()}


def proxy_credential(home: CoordinatorHome) -> tuple[Path, Path]:
    """A server certificate for the proxy, from the federation's own CA."""
    authority = Credential(home.ca_file.read_bytes(), home.ca_file.with_suffix(".key").read_bytes())
    made = make_server(authority, ["localhost"], datetime.now(UTC))
    folder = home.root.parent / "proxy"
    folder.mkdir()
    certificate, key = folder / "proxy.pem", folder / "proxy.key"
    certificate.write_bytes(made.certificate_pem)
    write_private(key, made.key_pem)
    return certificate, key


def main(root: Path, *, isolated: bool) -> None:
    """Tell the story and keep what it left."""
    outcome: dict[str, Any] = {"isolated": isolated}
    if isolated:
        raise_loopback()
    with Processes(os.environ) as server, Processes(os.environ) as sites:
        story = Story(root, server, sites)
        with story.act("found"):
            story.found()
        with RecordingProxy(story.port, *proxy_credential(story.home), story.home.ca_file) as proxy:
            tell(story, proxy, outcome)
            wire = root / "wire"
            wire.mkdir()
            for index, conversation in enumerate(proxy.conversations):
                (wire / f"{index:04d}.sent").write_bytes(conversation.sent)
                (wire / f"{index:04d}.received").write_bytes(conversation.received)
    outcome["seconds"] = story.seconds
    outcome["unroutable_attempts"] = unroutable_attempts() if isolated else None
    # A datagram socket sends nothing by connecting; this shows that hook and count can tell.
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.connect((CONTROL_HOST, 443))
    outcome["unroutable_after_control"] = unroutable_attempts() if isolated else None
    (root / "outcome.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main(Path(sys.argv[1]), isolated="--isolated" in sys.argv)
