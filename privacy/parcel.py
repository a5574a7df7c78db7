"""Parcels: the only things that cross between a site and the coordinator.

A parcel is a kind, a signed statement (DSSE envelope over canonical JSON) and an opaque payload
that the statement names by SHA-256. Flower carries it as one ConfigRecord and one byte array.

Coordinator to site: `prepare` (plan; payload is the frozen basis), `round` (order; payload is the
adapter's current trainable numbers), `release` (manifest; payload is the adapter as safetensors).
Outside of jobs: `offer` (offer of a published release; payload is its adapter) and `withdraw`.
Site to coordinator: `accepted`, `update` (payload is the packed noisy sum), `activated`,
`withdrawn`, `refused`. A refusal carries a code and nothing else: no text of a site ever leaves it.

Under secure aggregation `round` is replaced by five exchanges, whose statements are in
`privacy.secure_aggregation.messages`: `secure-keys` and `keys`, `secure-shares` and `shares`,
`secure-round` (payload as in `round`) and `update` (payload masked), `secure-confirm` and
`confirmed`, `secure-unmask` and `unmasked`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from types import MappingProxyType
from typing import Literal, get_args

CoordinatorKind = Literal[
    "prepare",
    "round",
    "release",
    "offer",
    "withdraw",
    "secure-keys",
    "secure-shares",
    "secure-round",
    "secure-confirm",
    "secure-unmask",
]
SiteKind = Literal[
    "accepted",
    "update",
    "activated",
    "withdrawn",
    "refused",
    "keys",
    "shares",
    "confirmed",
    "unmasked",
]
ParcelKind = CoordinatorKind | SiteKind
LATER = MappingProxyType({"omit_default": True})
"""Metadata of a field that a statement's first version had not: its default is never written, so
that statements of that version still open (`privacy.signing.seal`)."""
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

    The array is in the plan's encoding (`privacy.update_encoding`), or under secure aggregation
    unsigned words (`FixedPoint`).
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
    """Site's statement for everything but an update: accepted, activated, withdrawn or refused."""

    job: str
    round: int  # 0 for prepare and for releases
    site: str
    subject_sha256: str  # hash of the plan, order payload or release manifest answered
    code: str  # "ok" or a refusal code
    peer_size: int = 0  # size of the last head of the coordinator's ledger that the site holds


@dataclasses.dataclass(frozen=True)
class Measured:
    """One figure on a test set: of the base alone, and of the base with the release."""

    metric: str
    base: float
    release: float


@dataclasses.dataclass(frozen=True)
class ReleaseEvaluation:
    """How a release did on the coordinator's public test set, before it was published.

    Attributes:
        data_sha256: hex SHA-256 that fixes the test set's recordings and texts.
        recordings: how many there are.
        measured: figures, in a fixed order.
    """

    data_sha256: str
    recordings: int
    measured: tuple[Measured, ...]


@dataclasses.dataclass(frozen=True)
class ReleaseManifest:
    """Coordinator's statement for a release; the payload is the peft adapter as safetensors.

    Attributes:
        release: name, made of the job and of the adapter's hash.
        parent: name of the release that this one replaces; None for the first.
        parent_sha256: hex SHA-256 of the parent's manifest as it was signed.
        tree_head: hex root of the coordinator's ledger when this was signed.
        epsilon_loc: one subject's ε against everybody, infinite without noise.
        epsilon_sec: the same where only sums over sites are seen.
        evaluation: None where nothing was measured.
        license: of the adapter, as the Hugging Face hub names licences.
        base_model: name of the base on that hub, where the operator gave one.
    """

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
    parent_sha256: str | None = dataclasses.field(default=None, metadata=LATER)
    evaluation: ReleaseEvaluation | None = dataclasses.field(default=None, metadata=LATER)
    license: str = dataclasses.field(default="unknown", metadata=LATER)
    base_model: str = dataclasses.field(default="", metadata=LATER)


@dataclasses.dataclass(frozen=True)
class ReleaseOffer:
    """Coordinator's statement to one site that missed a release's job: serve this release.

    `manifest` is the release's own signed envelope as text; the ledger's head is that of now.
    """

    job: str
    release: str
    manifest: str
    tree_head: str
    tree_size: int
    peer_size: int
    proofs: tuple[HeadProof, ...]


@dataclasses.dataclass(frozen=True)
class ReleaseWithdrawal:
    """Coordinator's statement to every site: never serve this release again. It is final.

    `manifest_sha256` is of the release's manifest as it was signed, `code` says why. It states no
    head of the ledger, so that it may come at any moment, in the middle of a round too.
    """

    job: str
    release: str
    manifest_sha256: str
    code: str
    withdrawn_at: str
