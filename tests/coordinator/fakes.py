"""A small federation without models or sockets: deterministic sites, artifacts, clock."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from safetensors.numpy import save
from sqlalchemy import Engine

from coordinator.job import Tools
from coordinator.jobs import Jobs
from coordinator.journal import Journal
from coordinator.link import Delivery
from coordinator.model_artifacts import JobArtifacts
from coordinator.operations import Operations
from coordinator.registry import Endpoint, Enrolment, Registry
from coordinator.release_records import ReleaseRecords
from coordinator.request import JobRequest
from coordinator.secure_records import SecureRecords
from coordinator.store import create_schema
from privacy.ledger import Ledger
from privacy.parcel import (
    Answer,
    Parcel,
    ReleaseManifest,
    ReleaseOffer,
    ReleaseWithdrawal,
    RoundOrder,
    UpdateHeader,
)
from privacy.plan import AdapterSpec, RoundPlan, TensorSpec
from privacy.signing import (
    Identity,
    PublicIdentity,
    open_as,
    open_statement,
    payload_type_of,
    seal,
    seal_statement,
)
from privacy.store import open_engine

SPEC = AdapterSpec(
    kind="core",
    rank=2,
    scaling=1.0,
    target_modules=("q_proj",),
    target_parameters=(),
    tensors=(TensorSpec("a.core", (2, 2)), TensorSpec("b.core", (2, 2))),
    basis_sha256=hashlib.sha256(b"basis").hexdigest(),
)
ENDPOINT = Endpoint("https://localhost:8443", "ca")
HEAD = {"tree_head": "0" * 64, "tree_size": 1}  # a ledger that does not grow


class SmallArtifacts:
    """Artifacts of a model of eight numbers."""

    def prepare(self, base_folder, request) -> JobArtifacts:
        return JobArtifacts("b" * 64, SPEC, b"basis", np.zeros(SPEC.size, np.float32))

    def export(self, base_folder, spec, basis, weights_D) -> bytes:
        return save({"weights": weights_D})


class FakeClock:
    """A clock that moves only when told; `wait` is a sleep that takes no time."""

    def __init__(self, now_s: float = 1_800_000_000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def wait(self, duration_s: float) -> bool:
        self.now_s += duration_s
        return False


class FakeSite:
    """A site whose update is a function of its name, the round and the order's payload."""

    def __init__(self, name: str, coordinator: PublicIdentity) -> None:
        self.name = name
        self.identity = Identity.generate()
        self.node_public = node_key()
        self.trusted = (coordinator,)
        self.plans: dict[str, RoundPlan] = {}
        self.orders: list[int] = []
        self.released: list[ReleaseManifest] = []
        self.withdrawn: list[tuple[str, str]] = []
        self.spoil: Callable[[Parcel], Parcel] = lambda parcel: parcel
        self.veto: str | None = None

    def __call__(self, parcel: Parcel) -> Parcel:
        match parcel.kind:
            case "prepare" if self.veto:
                return self.answer("refused", "", "0" * 64, self.veto)
            case "prepare":
                plan = open_as(RoundPlan, parcel.statement, self.trusted)
                self.plans[plan.job] = plan
                return self.answer("accepted", plan.job, plan.sha256)
            case "round":
                order = open_as(RoundOrder, parcel.statement, self.trusted)
                self.orders.append(order.round)
                return self.spoil(self.update(order.job, order.round, parcel.payload))
            case "withdraw":
                withdrawal = open_as(ReleaseWithdrawal, parcel.statement, self.trusted)
                self.withdrawn.append((withdrawal.release, withdrawal.code))
                return self.answer("withdrawn", withdrawal.job, withdrawal.manifest_sha256)
        statement = parcel.statement
        if parcel.kind == "offer":
            statement = open_as(ReleaseOffer, statement, self.trusted).manifest.encode()
        kind = payload_type_of(ReleaseManifest)
        signed = open_statement(statement, kind, self.trusted)
        manifest = open_as(ReleaseManifest, statement, self.trusted)
        self.released.append(manifest)
        return self.answer("activated", manifest.job, hashlib.sha256(signed).hexdigest())

    def answer(self, kind: str, job: str, subject_sha256: str, code: str = "ok") -> Parcel:
        answer = Answer(job, 0, self.name, subject_sha256, code)
        return Parcel(kind, seal(answer, self.identity))

    def update(self, job: str, number: int, weights: bytes) -> Parcel:
        seed = hashlib.sha256(f"{self.name}/{number}".encode() + weights).digest()
        values = np.random.default_rng(list(seed)).normal(size=SPEC.size)
        return self.sealed(job, number, values.astype(np.float32).tobytes())

    def sealed(self, job: str, number: int, payload: bytes, /, **changes) -> Parcel:
        """An update of these bytes; `changes` replace fields of its header."""
        fields = {
            "job": job,
            "round": number,
            "site": self.name,
            "plan_sha256": self.plans[job].sha256,
            "payload_sha256": hashlib.sha256(payload).hexdigest(),
            "size_bytes": len(payload),
        }
        header = UpdateHeader(**(fields | HEAD | changes))
        return Parcel("update", seal(header, self.identity), payload)

    def enrolment(self, token: str) -> Enrolment:
        import rfc8785

        proof = {
            "token_sha256": hashlib.sha256(token.encode()).hexdigest(),
            "site": self.name,
            "node_public": self.node_public,
        }
        kind = "application/vnd.auricle.enrolment+json"
        statement = seal_statement(rfc8785.dumps(proof), kind, self.identity)
        pem = self.identity.public.public_pem
        return Enrolment(token, self.name, pem, self.node_public, statement)


class StepLink:
    """A FleetLink without threads: a reply is there at the next poll, or never."""

    def __init__(self, sites) -> None:
        self.sites = sites
        self.offline: set[str] = set()
        self.silent: set[str] = set()  # take parcels, never answer
        self.failing: dict[str, str] = {}  # site: error code of its next delivery
        self.sent: list[tuple[str, str]] = []
        self._replies: dict[str, Delivery] = {}

    def online(self) -> frozenset[str]:
        return frozenset(self.sites) - self.offline

    def send(self, site: str, parcel: Parcel) -> str:
        self.sent.append((site, parcel.kind))
        message = f"m{len(self.sent)}"
        if code := self.failing.pop(site, None):
            self._replies[message] = Delivery(message, site, error_code=code)
        elif site not in self.silent:
            self._replies[message] = Delivery(message, site, self.sites[site](parcel))
        return message

    def poll(self, message_ids) -> list[Delivery]:
        return [self._replies.pop(m) for m in message_ids if m in self._replies]

    def close(self) -> None:
        self._replies.clear()


def node_key(curve: ec.EllipticCurve | None = None) -> str:
    """A new node key, as an OpenSSH public key."""
    key = ec.generate_private_key(curve or ec.SECP384R1()).public_key()
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def token_of(invite: bytes, coordinator: PublicIdentity) -> str:
    """The token inside an invite."""
    import json

    kind = "application/vnd.auricle.invite+json"
    return json.loads(open_statement(invite, kind, (coordinator,)))["token"]


def make_tools(folder: Path, identity: Identity, clock, url: str = "") -> tuple[Tools, Engine]:
    """A coordinator's tools over the database `url`, or one in `folder`."""
    engine = open_engine(url or f"sqlite:///{folder / 'auricle.db'}")
    create_schema(engine)
    ledger = Ledger(engine, identity, "coordinator", lambda: datetime.fromtimestamp(clock(), UTC))
    tools = Tools(
        jobs=Jobs(engine),
        secure=SecureRecords(engine),
        registry=Registry(engine, identity, clock),
        journal=Journal(engine, ledger),
        identity=identity,
        artifacts=SmallArtifacts(),
        releases=ReleaseRecords(engine),
        releases_folder=folder / "releases",
        clock=clock,
    )
    return tools, engine


class Federation:
    """Tools, operations and enrolled fake sites."""

    def __init__(
        self, folder: Path, names: tuple[str, ...] = ("east", "north", "west"), url: str = ""
    ) -> None:
        self.clock = FakeClock()
        self.identity = Identity.generate()
        self.tools, self.engine = make_tools(folder, self.identity, self.clock, url)
        self.sites = {name: FakeSite(name, self.identity.public) for name in names}
        self.online: set[str] = set(names)
        self.fleet: dict[str, str] = {}
        self.operations = Operations(
            engine=self.engine,
            tools=self.tools,
            endpoint=ENDPOINT,
            online=lambda: frozenset(self.online),
            set_fleet=self._set_fleet,
            wake=lambda: None,
        )
        for site in self.sites.values():
            invite = self.operations.invite(site.name, 3600, approve=True)
            self.operations.enrol(site.enrolment(token_of(invite, self.identity.public)))

    def _set_fleet(self, node_keys) -> None:
        self.fleet = dict(node_keys)


def request(**changes) -> JobRequest:
    """A private job of three rounds."""
    fields = {
        "purpose": "dictation",
        "base_folder": Path("base"),
        "rounds": 3,
        "sampling_rate": 0.3,
        "clipping_norm": 1.0,
        "delta": 1e-6,
        "expected_subjects": 100,
        "noise_multiplier": 1.0,
        "deadline_s": 60.0,
    }
    return JobRequest(**(fields | changes))
