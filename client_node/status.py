"""What a site shows about itself on its own page and in `auricle site status`."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from client_node.home import SiteHome, SiteSettings
from client_node.keys import load_keys
from client_node.policy import SitePolicy
from client_node.serving import open_model_store
from client_node.store import SiteStore
from privacy.budget import Budget
from privacy.certificates import expiry_of
from privacy.ledger import Ledger
from privacy.parcel import ReleaseManifest
from privacy.receipt import Receipt, read_receipts
from privacy.store import open_engine

LATEST_RECEIPTS = 20


@dataclasses.dataclass(frozen=True)
class BudgetLine:
    """Privacy budget of one purpose; ε values are for one subject, at `delta`."""

    purpose: str
    epsilon_spent: float
    epsilon_cap: float
    delta: float


@dataclasses.dataclass(frozen=True)
class ReceiptLine:
    """One thing that left the site: what, when, how large, and the hash of its bytes."""

    at: str
    kind: str
    job: str
    round: int
    size_bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class ReleaseLine:
    """The release that serves, as its signed manifest describes it."""

    release: str
    job: str
    rounds: int
    issued_at: str
    epsilon_loc: float
    epsilon_sec: float
    delta: float


@dataclasses.dataclass(frozen=True)
class SiteStatus:
    """A site at one moment.

    `release` is None while the bare base serves, `coordinator_url` empty before the site has
    joined; `receipts` are the latest, newest first, and `bytes_sent` is over all of them.
    `warnings` say what will stop working soon.
    """

    site: str
    coordinator_url: str
    recordings: int
    subjects: int
    ledger_entries: int
    ledger_root: str
    budgets: tuple[BudgetLine, ...]
    receipts: tuple[ReceiptLine, ...]
    bytes_sent: int
    release: ReleaseLine | None
    warnings: tuple[str, ...] = ()


def collect_status(home: SiteHome) -> SiteStatus:
    """Read a site's state, verifying its whole ledger and the release that serves.

    Raises LedgerError, ReleaseError, SignatureError or ReceiptError where one does not verify.
    """
    settings = SiteSettings.load(home.settings)
    engine = open_engine(home.database_url)
    try:
        ledger = Ledger(engine, load_keys(home).identity, f"site/{settings.site}", _now)
        counts = SiteStore(engine).counts()
        head = ledger.tree_head()
        policy = SitePolicy.load(home.policy)
        budget = Budget(engine, settings.site, policy.caps, ledger.append)
        budgets = tuple(_budget_line(budget, purpose) for purpose in budget.purposes())
    finally:
        engine.dispose()
    active = open_model_store(home, settings).active()
    receipts = read_receipts(home.receipts)
    return SiteStatus(
        site=settings.site,
        coordinator_url=settings.coordinator_url,
        recordings=counts.recordings,
        subjects=counts.subjects,
        ledger_entries=head.size,
        ledger_root=head.root,
        budgets=budgets,
        receipts=tuple(_receipt_line(one) for one in reversed(receipts[-LATEST_RECEIPTS:])),
        bytes_sent=sum(one.size_bytes for one in receipts),
        release=None if active is None else _release_line(active.manifest),
        warnings=_warnings(home),
    )


def _warnings(home: SiteHome) -> tuple[str, ...]:
    if not home.ca.exists():
        return ()
    name, remedy = "the coordinator's certificate authority", "ask its operator, and join again"
    try:
        warning = expiry_of(home.ca.read_bytes(), name, remedy).warning(_now())
    except ValueError:
        warning = f"{name}, {home.ca}, cannot be read: restore it from backup, or join again"
    return (warning,) if warning else ()


def _budget_line(budget: Budget, purpose: str) -> BudgetLine:
    state = budget.spent(purpose)
    return BudgetLine(purpose, state.epsilon_loc, state.epsilon_cap, state.delta)


def _receipt_line(one: Receipt) -> ReceiptLine:
    return ReceiptLine(one.at, one.kind, one.job, one.round, one.size_bytes, one.sha256)


def _release_line(manifest: ReleaseManifest) -> ReleaseLine:
    return ReleaseLine(
        release=manifest.release,
        job=manifest.job,
        rounds=manifest.rounds,
        issued_at=manifest.issued_at,
        epsilon_loc=manifest.epsilon_loc,
        epsilon_sec=manifest.epsilon_sec,
        delta=manifest.delta,
    )


def _now() -> datetime:
    return datetime.now(UTC)
