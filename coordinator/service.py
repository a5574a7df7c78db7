"""The coordinator as a running service: listeners, fleet, and one thread that runs the jobs."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from fastapi import FastAPI
from sqlalchemy.exc import OperationalError

from coordinator.admin_api import ADMIN_LIMIT_BYTES, ADMIN_PREFIX, create_admin_app
from coordinator.errors import LeaseError
from coordinator.flower_link import FlowerLink, create_superlink
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.job import JobLoop, Tools
from coordinator.jobs import Jobs
from coordinator.journal import Journal
from coordinator.lease import Lease
from coordinator.listeners import Listener, Mount, OnlyPaths
from coordinator.model_artifacts import ArtifactSource, SpeechArtifacts
from coordinator.operations import Operations
from coordinator.public_api import (
    ENROL_LIMIT_BYTES,
    ENROL_PATH,
    ROTATE_PATH,
    create_public_app,
)
from coordinator.registry import Enrolment, Registry, SiteRecord
from coordinator.release import Evaluate, Labels
from coordinator.release_delivery import ReleaseDelivery
from coordinator.release_records import ReleaseRecords
from coordinator.rotation import Rotation
from coordinator.secure_records import SecureRecords
from coordinator.store import create_schema
from privacy.errors import AuricleError, LedgerError, StoreError
from privacy.ledger import Ledger
from privacy.signing import Identity, PublicIdentity
from privacy.store import open_engine

LOOPBACK = "127.0.0.1"
IDLE_S = 1.0
DELIVERY_S = 1.0
TICK_S = 0.5  # deadlines, and sites that come online, are seen this late at most

_log = logging.getLogger(__name__)


class Coordinator:
    """One coordinator in this process, from `start` to `stop`.

    Only one may run in a process: Flower's task identity is process-global.
    """

    def __init__(
        self,
        home: CoordinatorHome,
        artifacts: ArtifactSource | None = None,
        clock: Callable[[], float] = time.time,
        wait: Callable[[float], None] = time.sleep,
        evaluate: Evaluate | None = None,
    ) -> None:
        """Open the databases, take the lease, verify the ledger, bind both ports.

        After a coordinator that was killed it waits for the end of that one's lease. `evaluate`
        measures each release on the operator's public test set. Raises StoreError, LeaseError,
        LedgerError, and CoordinatorError "port-in-use".
        """
        settings = home.settings()
        engine = open_engine(home.database_url(settings))
        create_schema(engine)
        self._lease = Lease(engine, clock)
        self.engine = self._lease.take(wait)
        try:
            self._assemble(home, settings, artifacts or SpeechArtifacts(), clock, evaluate)
        except BaseException:
            self._lease.release()
            raise

    def _assemble(
        self,
        home: CoordinatorHome,
        settings: CoordinatorSettings,
        artifacts: ArtifactSource,
        clock: Callable[[], float],
        evaluate: Evaluate | None,
    ) -> None:
        identity = Identity.load(home.identity_file)
        log_id = f"coordinator/{identity.public.key_id[:16]}"
        ledger = Ledger(self.engine, identity, log_id, lambda: datetime.fromtimestamp(clock(), UTC))
        self._tools = Tools(
            secure=SecureRecords(self.engine),
            jobs=Jobs(self.engine),
            registry=Registry(self.engine, identity, clock),
            journal=Journal(self.engine, ledger),
            identity=identity,
            artifacts=artifacts,
            releases=ReleaseRecords(self.engine),
            releases_folder=home.releases,
            clock=clock,
            evaluate=evaluate,
            labels=Labels(settings.release_license, settings.release_base_model),
        )
        superlink = create_superlink(home.flower_database)
        self._link = FlowerLink(superlink)
        self._delivery = ReleaseDelivery(self._tools, self._link)
        self._delivered_at_s = 0.0
        self._stopping = threading.Event()
        self._stopped = threading.Event()
        self._wake = threading.Event()
        self._failure: BaseException | None = None
        enrolment = self._enrolment_app(identity)
        self._public = Listener(
            OnlyPaths(
                [
                    Mount("/v1/fleet/", self._link.gate, settings.max_request_bytes),
                    Mount("/health", superlink, 0),
                    Mount(ENROL_PATH, enrolment, ENROL_LIMIT_BYTES),
                    Mount(ROTATE_PATH, enrolment, ENROL_LIMIT_BYTES),
                ],
                lifespan=superlink,
            ),
            settings.public_host,
            settings.public_port,
            tls=(home.server_certificate_file, home.server_key_file),
        )
        self.operations = Operations(
            engine=self.engine,
            tools=self._tools,
            endpoint=home.endpoint(settings, self._public.port),
            online=self._link.online,
            set_fleet=self._link.set_fleet,
            wake=self._wake.set,
        )
        admin = create_admin_app(self.operations, home.admin_token())
        mounts = [Mount(ADMIN_PREFIX, admin, ADMIN_LIMIT_BYTES)]
        self._admin = Listener(OnlyPaths(mounts, lifespan=admin), LOOPBACK, settings.admin_port)
        self._worker = threading.Thread(target=self._work, name="jobs")
        self._renewer = threading.Thread(target=self._keep_lease, name="lease", daemon=True)

    @property
    def public_port(self) -> int:
        """Port of the TLS listener."""
        return self._public.port

    @property
    def admin_port(self) -> int:
        """Port of the admin listener on loopback."""
        return self._admin.port

    def start(self) -> None:
        """Let the enrolled sites in, serve, and go on with whatever job was interrupted."""
        self._renewer.start()
        self._tools.journal.flush()
        self.operations.admit_fleet()
        self._public.start()
        self._admin.start()
        self._worker.start()
        _log.info("serving sites on port %d, operators on %d", self.public_port, self.admin_port)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until something asks the service to stop; False on timeout."""
        return self._stopping.wait(timeout_s)

    def stop(self) -> None:
        """Stop in order; a job goes on at the next start. Raises what the job thread died of."""
        self.ask_to_stop()
        if self._worker.is_alive():
            self._worker.join()
        self._public.stop()
        self._admin.stop()
        self._link.close()
        self._stopped.set()
        if self._renewer.is_alive():
            self._renewer.join()
        self._lease.release()
        self.engine.dispose()
        if self._failure is not None:
            raise self._failure

    def ask_to_stop(self) -> None:
        """Make `wait` return; safe in a signal handler."""
        self._stopping.set()
        self._wake.set()
        self._link.release()

    def _enrolment_app(self, identity: Identity) -> FastAPI:
        # `operations` is made after the listener, whose port it tells.
        def enrol(enrolment: Enrolment) -> SiteRecord:
            return self.operations.enrol(enrolment)

        def rotate(rotation: Rotation) -> PublicIdentity:
            return self.operations.rotate(rotation)

        return create_public_app(enrol, rotate, identity.public.public_pem)

    def _work(self) -> None:
        try:
            while not self._stopping.is_set():
                self._wake.clear()
                if waiting := self._tools.jobs.unfinished():
                    self._run_job(waiting[0])
                else:
                    self._deliver()
                    self._wake.wait(IDLE_S)
        except BaseException as error:  # noqa: BLE001 - raised again by stop(), in the main thread
            self._fail("job", error)

    def _keep_lease(self) -> None:
        # Until all has stopped: the last transactions need the lease as well.
        while not self._stopped.wait(self._lease.renew_every_s):
            try:
                self._lease.renew()
            except (OperationalError, StoreError):
                # A busy database: nobody may write without the lease, so trying again is safe.
                _log.warning("the lease could not be renewed")
            except BaseException as error:  # noqa: BLE001 - raised again by stop()
                self._fail("lease", error)
                return

    def _fail(self, thread: str, error: BaseException) -> None:
        code = getattr(error, "code", type(error).__name__)
        _log.critical("the %s thread failed: %s", thread, code)
        self._failure = self._failure or error
        self.ask_to_stop()

    def _pause(self, duration_s: float) -> bool:
        """Until sites have sent something, or the clock is to be read; whether to stop."""
        self._deliver()
        self._link.wait(max(duration_s, TICK_S))
        return self._stopping.is_set()

    def _deliver(self) -> None:
        """Tell sites of releases; not at every tick of a job, whose rounds are to be quick."""
        now_s = self._tools.clock()
        if abs(now_s - self._delivered_at_s) >= DELIVERY_S:
            self._delivery.step()
            self._delivered_at_s = now_s

    def _run_job(self, job: str) -> None:
        """Run a job to its end; a fault of its own abandons it and leaves the service up."""
        try:
            JobLoop(job, self._tools, self._link).run(self._pause)
        except (LedgerError, LeaseError, StoreError):
            # The ledger verifies (I4) and is ours alone to write, or the service stops; and a
            # database that is full or locked cannot be told that the job is abandoned.
            raise
        except AuricleError as error:
            _log.error("job %s is abandoned: %s", job, error.code)
            self._tools.jobs.abandon(job, error.code, self._tools.clock())


def run_coordinator(
    home: CoordinatorHome,
    started: Callable[[Coordinator], None] = lambda _: None,
    evaluate: Evaluate | None = None,
) -> None:
    """Run a coordinator until SIGTERM or SIGINT; `started` is called once it serves.

    `evaluate` measures each release before it is signed. Raises CoordinatorError ("port-in-use",
    "settings-invalid"), LeaseError beside another coordinator, LedgerError where the ledger does
    not verify, and whatever else stopped it.
    """
    coordinator = Coordinator(home, evaluate=evaluate)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda _number, _frame: coordinator.ask_to_stop())
    coordinator.start()
    started(coordinator)
    coordinator.wait()
    coordinator.stop()
