"""What coordinator and sites say to each other; each is the statement of one parcel.

Byte strings travel as lower-case hex. A statement that another site must check travels whole, as
the DSSE envelope that its site signed: the coordinator only carries it.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterable

import rfc8785

from privacy.parcel import RoundOrder


@dataclasses.dataclass(frozen=True)
class KeysOrder:
    """Coordinator: make fresh keys for this round."""

    job: str
    round: int
    plan_sha256: str


@dataclasses.dataclass(frozen=True)
class SiteKeys:
    """Site: its fresh public keys for one round, and a commitment to its own mask.

    Attributes:
        share_public: X25519 key under which others seal shares to this site.
        mask_public: X25519 key from which masks shared with others are agreed.
        self_seed_sha256: hash of the seed of the site's own mask.
    """

    job: str
    round: int
    plan_sha256: str
    site: str
    share_public: str
    mask_public: str
    self_seed_sha256: str


@dataclasses.dataclass(frozen=True)
class Roster:
    """Coordinator: the envelopes of SiteKeys of all who take part, in order of site name."""

    job: str
    round: int
    plan_sha256: str
    keys: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class SiteShares:
    """Site: its sealed shares for each site of the roster, in order; "" for itself."""

    job: str
    round: int
    plan_sha256: str
    roster_sha256: str
    site: str
    sealed: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class MaskOrder:
    """Coordinator: train as `order` says, and send the update masked among `sites`.

    Attributes:
        order: the round's order, the same for every site.
        sites: sites of the roster whose shares came in, in order of name.
        sealed: the shares that each of `sites` sealed to the addressee, "" from itself.
    """

    order: RoundOrder
    roster_sha256: str
    sites: tuple[str, ...]
    sealed: tuple[str, ...]

    @property
    def job(self) -> str:
        """Job of the order."""
        return self.order.job

    @property
    def round(self) -> int:
        """Round of the order."""
        return self.order.round

    @property
    def plan_sha256(self) -> str:
        """Plan of the order."""
        return self.order.plan_sha256


@dataclasses.dataclass(frozen=True)
class SurvivorList:
    """Coordinator: whose masked updates are in the sum, and whose never came."""

    job: str
    round: int
    plan_sha256: str
    roster_sha256: str
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Confirmation:
    """Site: the one list of survivors and dropped sites that it will ever help to unmask."""

    job: str
    round: int
    plan_sha256: str
    roster_sha256: str
    site: str
    survivors: tuple[str, ...]
    dropped: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class UnmaskOrder:
    """Coordinator: envelopes of a threshold of Confirmations, all of one list."""

    job: str
    round: int
    plan_sha256: str
    confirmations: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Unmasking:
    """Site: its shares of each survivor's own mask, and of each dropped site's mask key."""

    job: str
    round: int
    plan_sha256: str
    roster_sha256: str
    site: str
    survivor_shares: tuple[str, ...]
    dropped_shares: tuple[str, ...]


SiteMessage = SiteKeys | SiteShares | Confirmation | Unmasking


def roster_sha256(keys: Iterable[SiteKeys]) -> str:
    """Hex SHA-256 that names a roster: over what was signed, in order of site name."""
    ordered = sorted(keys, key=lambda one: one.site)
    return hashlib.sha256(rfc8785.dumps([dataclasses.asdict(one) for one in ordered])).hexdigest()
