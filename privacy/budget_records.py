"""What a budget speaks of: a site's caps, one round's reservation, and what has been spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

NO_CAP = math.inf


@dataclass(frozen=True, kw_only=True)
class BudgetCaps:
    """What a site allows. Each cap is on the ε_loc of one subject, composed, never added up.

    Attributes:
        delta: δ at which every cap holds; plans with another δ are refused.
        per_purpose: caps by purpose, since the site began.
        default: cap of each purpose that `per_purpose` does not name.
        total: cap over all purposes, since the site began.
        yearly: cap over all purposes in one calendar year (UTC).
        subject: cap over all purposes since a subject arrived; who would pass it is no longer
            sampled, and the site goes on with those who came later.
        allow_unprotected: whether plans without noise (ε = ∞) may run. For synthetic data only.
    """

    delta: float
    per_purpose: Mapping[str, float] = field(default_factory=dict)
    default: float = 0.0
    total: float = NO_CAP
    yearly: float = NO_CAP
    subject: float = NO_CAP
    allow_unprotected: bool = False

    def epsilon_cap(self, purpose: str) -> float:
        """Cap on ε_loc for `purpose`."""
        return self.per_purpose.get(purpose, self.default)


@dataclass(frozen=True)
class Reservation:
    """Leave to run one round's mechanism once.

    `fresh` is True for the one caller that made the reservation, who alone may draw noise under
    it. Everyone asking again gets False: the round has run, or died, and may only be answered
    from what was already sealed.
    """

    sequence: int
    job: str
    round: int
    purpose: str
    plan_sha256: str
    committed: bool
    fresh: bool


@dataclass(frozen=True)
class BudgetState:
    """Spend of one purpose: `reserved` and `committed` count rounds, and both are spent."""

    purpose: str
    epsilon_loc: float
    epsilon_cap: float
    remaining: float
    reserved: int
    committed: int
    delta: float


@dataclass(frozen=True)
class SpendLine:
    """What a subject who was here all along has spent under one cap, of `rounds` rounds.

    `scope` is "total", "year 2026" or a purpose's name.
    """

    scope: str
    epsilon_loc: float
    epsilon_cap: float
    rounds: int
