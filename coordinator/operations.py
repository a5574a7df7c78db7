"""What an operator can do: the verbs behind the admin API, the pages and the command line."""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine

from coordinator.aggregate import pack
from coordinator.job import Tools
from coordinator.job_records import Checkpoint, JobRecord
from coordinator.jobs import NewJob
from coordinator.optimiser import OptimiserState
from coordinator.planning import make_plan
from coordinator.registry import Endpoint, Enrolment, SiteRecord
from coordinator.release_desk import ReleaseDesk
from coordinator.request import JobRequest
from coordinator.rotation import Rotation
from coordinator.status import JobStatus, job_status
from privacy.signing import PublicIdentity, seal

JOB_ID_BYTES = 8


@dataclasses.dataclass(frozen=True)
class SiteOverview:
    """An enrolled site as an operator sees it."""

    site: str
    key_id: str
    online: bool
    active: bool
    approved: bool
    revoked: bool
    quarantine_code: str | None


@dataclasses.dataclass(frozen=True)
class Operations:
    """The verbs, over one database.

    Attributes:
        online: names of the sites connected now.
        set_fleet: lets in exactly these sites, by the OpenSSH key of their node.
        wake: tells the job thread that there is work.
    """

    engine: Engine
    tools: Tools
    endpoint: Endpoint
    online: Callable[[], frozenset[str]]
    set_fleet: Callable[[Mapping[str, str]], None]
    wake: Callable[[], None]

    def invite(self, site: str, valid_for_s: float, *, approve: bool = False) -> bytes:
        """The content of a one-time invite file for `site`. Raises EnrolmentError."""
        registry = self.tools.registry
        invite = registry.invite(site, self.endpoint, valid_for_s, approve=approve)
        self.tools.journal.flush()
        return invite

    def enrol(self, enrolment: Enrolment) -> SiteRecord:
        """Enrol a site, and let its node in if the invite approves it. Raises EnrolmentError."""
        record = self.tools.registry.enrol(enrolment)
        self._after_change()
        return record

    def rotate(self, rotation: Rotation) -> PublicIdentity:
        """Replace a site's signing key by one that its present key vouches for.

        Raises EnrolmentError.
        """
        successor = self.tools.registry.rotate(rotation)
        self.tools.journal.flush()
        return successor

    def approve(self, site: str) -> SiteRecord:
        """Let in a site that has enrolled. Raises CoordinatorError."""
        record = self.tools.registry.approve(site)
        self._after_change()
        return record

    def revoke(self, site: str) -> SiteRecord:
        """Shut a site out at once. Raises CoordinatorError."""
        record = self.tools.registry.revoke(site)
        self._after_change()
        return record

    def restore(self, site: str) -> SiteRecord:
        """Lift a site's quarantine. Raises CoordinatorError."""
        record = self.tools.registry.restore(site)
        self._after_change()
        return record

    def sites(self) -> list[SiteOverview]:
        """All sites ever enrolled."""
        online = self.online()
        return [
            SiteOverview(
                site=record.name,
                key_id=record.identity.key_id,
                online=not record.revoked and record.name in online,
                active=record.active,
                approved=record.approved,
                revoked=record.revoked,
                quarantine_code=record.quarantine_code,
            )
            for record in self.tools.registry.sites()
        ]

    def submit(self, request: JobRequest) -> str:
        """Plan a job and queue it; returns its name. Takes seconds: the base model is loaded.

        Raises RequestError, PlanError, and the model room's errors on a wrong base.
        """
        tools = self.tools
        artifacts = tools.artifacts.prepare(request.base_folder, request.adapter)
        now_s = tools.clock()
        active = tools.registry.active()
        plan = make_plan(
            request,
            artifacts,
            active,
            job=secrets.token_hex(JOB_ID_BYTES),
            issued_at_s=now_s,
            site_keys={name: site.identity.raw_hex for name, site in active.items()},
        )
        checkpoint = Checkpoint(
            basis=artifacts.basis,
            weights=pack(artifacts.initial),
            optimiser=OptimiserState.initial(plan.adapter.size).to_bytes(),
        )
        statement = seal(plan, tools.identity)
        tools.jobs.create(NewJob(request, plan, statement, checkpoint), now_s)
        tools.journal.flush()
        self.wake()
        return plan.job

    @property
    def releases(self) -> ReleaseDesk:
        """The verbs of releases."""
        return ReleaseDesk(self.tools)

    def jobs(self) -> list[str]:
        """All jobs, oldest first."""
        return self.tools.jobs.names()

    def job(self, job: str) -> JobRecord:
        """The job with its plan. Raises CoordinatorError."""
        return self.tools.jobs.load(job)

    def status(self, job: str) -> JobStatus:
        """How the job stands. Raises CoordinatorError."""
        return job_status(self.engine, job, self.online())

    def resume(self, job: str) -> None:
        """Give an abandoned job another chance. Raises CoordinatorError."""
        self.tools.jobs.resume(job, self.tools.clock())
        self.tools.journal.flush()
        self.wake()

    def ledger(self, start: int, end: int) -> dict[str, Any]:
        """The ledger's signed head and entries [start, end), as JSON material."""
        ledger = self.tools.journal.ledger
        head = ledger.tree_head()
        return {
            "log_id": head.log_id,
            "size": head.size,
            "root": head.root,
            "head": head.sealed.decode("ascii"),
            "entries": [
                {"index": e.index, "at": e.at, "kind": e.kind, "fields": dict(e.fields)}
                for e in ledger.entries(start, end)
            ],
        }

    def admit_fleet(self) -> None:
        """Let in the nodes of the sites that are approved and not revoked.

        A quarantined site may connect; it is not asked for anything.
        """
        records = self.tools.registry.sites()
        self.set_fleet({r.name: r.node_public for r in records if r.admitted})

    def _after_change(self) -> None:
        self.admit_fleet()
        self.tools.journal.flush()
        self.wake()
