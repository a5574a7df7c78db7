"""What a site shows about itself on its own page and in `auricle site status`."""

from __future__ import annotations

import dataclasses


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
    """A site at one moment. `release` is None while the bare base serves."""

    site: str
    recordings: int
    subjects: int
    ledger_entries: int
    ledger_root: str
    budgets: tuple[BudgetLine, ...]
    receipts: tuple[ReceiptLine, ...]
    bytes_sent: int
    release: ReleaseLine | None
