"""Parcels: the only things that cross between a site and the coordinator.

A parcel is a kind, a signed statement (DSSE envelope over canonical JSON) and an opaque payload
that the statement names by SHA-256. Flower carries it as one ConfigRecord and one byte array.

Coordinator to site: `prepare` (plan; payload is the frozen basis), `round` (order; payload is the
adapter's current trainable numbers), `release` (manifest; payload is the adapter as safetensors).
Site to coordinator: `accepted`, `update` (payload is the packed noisy sum), `activated`,
`refused`. A refusal carries a code and nothing else: no text of a site ever leaves it.

Under secure aggregation `round` is replaced by five exchanges, whose statements are in
`privacy.secure_aggregation.messages`: `secure-keys` and `keys`, `secure-shares` and `shares`,
`secure-round` (payload as in `round`) and `update` (payload masked), `secure-confirm` and
`confirmed`, `secure-unmask` and `unmasked`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal, get_args

CoordinatorKind = Literal[
    "prepare",
    "round",
    "release",
    "secure-keys",
    "secure-shares",
    "secure-round",
    "secure-confirm",
    "secure-unmask",
]
SiteKind = Literal[
    "accepted", "update", "activated", "refused", "keys", "shares", "confirmed", "unmasked"
]
ParcelKind = CoordinatorKind | SiteKind
COORDINATOR_KINDS: frozenset[CoordinatorKind] = frozenset(get_args(CoordinatorKind))
SITE_KINDS: frozenset[SiteKind] = frozenset(get_args(SiteKind))


@dataclasses.dataclass(frozen=True)
class Parcel:
    """One message. `statement` is DSSE JSON; `payload` is bytes the statement vouches for."""

    kind: ParcelKind
    statement: bytes
    payload: bytes = b""

    @property
    def size_bytes(self) -> int:
        """Bytes of statement and payload together."""
        return len(self.statement) + len(self.payload)

    @property
    def payload_sha256(self) -> str:
        """Hex SHA-256 of the payload."""
        return hashlib.sha256(self.payload).hexdigest()


@dataclasses.dataclass(frozen=True)
class HeadProof:
    """RFC 9162 consistency proof from the sender's head of `size` entries; hashes are hex."""

    size: int
    hashes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class RoundOrder:
    """Coordinator's statement for a round, to one site: train once at this adapter state."""

    job: str
    round: int
    plan_sha256: str
    payload_sha256: str
    tree_head: str  # hex root of the coordinator's ledger when the order was issued
    tree_size: int
    peer_size: int = 0  # size of the last head of the site's ledger that the coordinator holds
    proofs: tuple[HeadProof, ...] = ()  # from heads of its ledger that the site may hold


@dataclasses.dataclass(frozen=True)
class UpdateHeader:
    """Site's statement over its update; `payload_sha256` covers the packed array.

    The array is float32, or under secure aggregation unsigned words (`FixedPoint`).
    """

    job: str
    round: int
    site: str
    plan_sha256: str
    payload_sha256: str
    size_bytes: int
    tree_head: str  # hex root of the site's ledger after committing this round
    tree_size: int
    peer_size: int = 0  # size of the last head of the coordinator's ledger that the site holds
    proofs: tuple[HeadProof, ...] = ()  # from heads of its ledger that the coordinator may hold


@dataclasses.dataclass(frozen=True)
class Answer:
    """Site's statement for everything but an update: accepted, activated or refused."""

    job: str
    round: int  # 0 for prepare and release
    site: str
    subject_sha256: str  # hash of the plan, order payload or release manifest answered
    code: str  # "ok" or a refusal code
    peer_size: int = 0  # size of the last head of the coordinator's ledger that the site holds


@dataclasses.dataclass(frozen=True)
class ReleaseManifest:
    """Coordinator's statement for a release; the payload is the peft adapter as safetensors."""

    release: str
    job: str
    rounds: int
    base_sha256: str
    plan_sha256: str
    adapter_sha256: str
    parent: str | None
    tree_head: str
    tree_size: int
    issued_at: str
    epsilon_loc: float
    epsilon_sec: float
    delta: float
