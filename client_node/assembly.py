"""A site's training side, put together from its home. The only place that chooses real parts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from client_node.agent import SiteAgent
from client_node.features import FeatureStore
from client_node.home import SiteHome, SiteSettings
from client_node.inference import transcriber_loader
from client_node.keys import load_keys, trusted_coordinator
from client_node.model_store import ModelStore, VerifiedRelease
from client_node.outbox import Outbox
from client_node.peers import PeerBook
from client_node.policy import SitePolicy
from client_node.private_round import PrivateRounds, Trainer
from client_node.release_canary import ReleaseCanary
from client_node.release_state import Withdrawn
from client_node.secure_round import SecureRounds
from client_node.site_log import SiteLog
from client_node.store import PlanBook, SiteStore, require_whole_spend
from client_node.trainer import SpeechTrainer
from model_core.base import SpeechBase, load_base
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.parcel import Parcel, ReleaseManifest
from privacy.private_log import PrivateLog
from privacy.random_source import RandomSource, SystemRandomSource
from privacy.receipt import write_receipt
from privacy.signing import PublicIdentity
from privacy.store import open_engine

Clock = Callable[[], datetime]
MakeTrainer = Callable[["SiteParts"], Trainer]


@dataclasses.dataclass(frozen=True)
class SiteParts:
    """What a running site is made of, below its agent."""

    home: SiteHome
    settings: SiteSettings
    base: SpeechBase
    store: SiteStore
    features: FeatureStore
    source: RandomSource


@dataclasses.dataclass(frozen=True)
class CheckedReleases:
    """The model store, with the canary that every release must pass before it serves."""

    models: ModelStore
    canary: Callable[[VerifiedRelease], None]

    def stage(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        """Verify a release and keep it. Raises ReleaseError or SignatureError."""
        return self.models.stage(statement, adapter)

    def activate(self, release: str, *, by_operator: bool = False) -> VerifiedRelease:
        """Make a kept release the one that serves. Raises what the canary raises."""
        return self.models.activate(release, self.canary, by_operator=by_operator)

    def withdraw(self, release: str, code: str) -> Withdrawn:
        """Never serve a release again."""
        return self.models.withdraw(release, code)


def utc_now() -> datetime:
    """The system's clock, with its zone."""
    return datetime.now(UTC)


def open_parts(home: SiteHome, source: RandomSource | None = None) -> SiteParts:
    """Load the base and open the recordings.

    Raises SiteError for settings, and WeightsError ("base-missing", "base-checksum").
    """
    settings = SiteSettings.load(home.settings)
    base = load_base(Path(settings.base_folder), settings.base_sha256 or None)
    return SiteParts(
        home=home,
        settings=settings,
        base=base,
        store=SiteStore(open_engine(home.database_url)),
        features=FeatureStore(home.features, base),
        source=source or SystemRandomSource(),
    )


def speech_trainer(parts: SiteParts) -> Trainer:
    """The trainer of real rounds."""
    return SpeechTrainer(
        parts.base,
        parts.store,
        parts.features,
        parts.source,
        parts.settings.rows_per_step,
        one_subject_per_step=parts.settings.one_subject_per_step,
    )


def open_agent(
    parts: SiteParts,
    log: SiteLog,
    clock: Clock = utc_now,
    make_trainer: MakeTrainer = speech_trainer,
) -> SiteAgent:
    """The agent of an enrolled site. Verifies its whole ledger.

    Raises SiteError ("not-enrolled" and the like) and LedgerError: then nothing may run (I4).
    """
    home, site, engine = parts.home, parts.settings.site, parts.store.engine
    identity, coordinator = load_keys(home).identity, trusted_coordinator(home)
    policy = SitePolicy.load(home.policy)
    ledger = Ledger(engine, identity, f"site/{site}", clock)
    private_log = PrivateLog(engine, identity, ledger.log_id, clock)
    heads = ledger.peer(f"coordinator/{coordinator.key_id[:16]}")
    budget = Budget(engine, site, policy.caps, ledger.append, clock)
    require_whole_spend(engine, site, home.receipts)
    trainer = make_trainer(parts)

    def keep_receipt(parcel: Parcel) -> None:
        write_receipt(home.receipts, parcel, clock)

    rounds = PrivateRounds(
        site=site,
        identity=identity,
        trainer=trainer,
        budget=budget,
        ledger=ledger,
        private_log=private_log,
        heads=heads,
        outbox=Outbox(engine),
        keep_receipt=keep_receipt,
        coins=np.random.default_rng(),
        code_version=code_version(),
    )
    return SiteAgent(
        site=site,
        identity=identity,
        coordinator=coordinator,
        policy=policy,
        plans=PlanBook(engine),
        peers=PeerBook(engine, site, identity.public, policy.peers),
        rounds=rounds,
        secure_rounds=SecureRounds(
            site=site,
            identity=identity,
            ledger=ledger,
            keep_receipt=keep_receipt,
            random=os.urandom,
        ),
        trainer=trainer,
        releases=checked_releases(home, parts.settings, coordinator, parts.base.base_sha256),
        budget=budget,
        ledger=ledger,
        heads=heads,
        keep_receipt=keep_receipt,
        log=log,
    )


def checked_releases(
    home: SiteHome, settings: SiteSettings, coordinator: PublicIdentity, base_sha256: str
) -> CheckedReleases:
    """The site's releases, and the canary that each must pass before it serves."""
    models = ModelStore(home.releases, (coordinator,), base_sha256)
    load = transcriber_loader(Path(settings.base_folder), base_sha256)
    return CheckedReleases(models, ReleaseCanary(load, models.active, home.canary))


def code_version() -> str:
    """Version of the installed code, for the ledger."""
    try:
        return version("auricle")
    except PackageNotFoundError:
        return "source-tree"
