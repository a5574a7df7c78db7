"""Admission: every check that an update passes before it may touch the model, in one list.

The order matters: size before parsing, the signature before anything the statement claims, the
statement before the numbers. Nothing is weighted by what a site says about itself.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import numpy as np

from coordinator.aggregate import Vector
from coordinator.errors import AdmissionError
from privacy.errors import AuricleError
from privacy.parcel import Parcel, UpdateHeader
from privacy.peer_heads import PEER_HEAD_CODES
from privacy.plan import RoundPlan
from privacy.secure_aggregation.fixed_point import FixedPoint
from privacy.signing import PublicIdentity, open_as
from privacy.update_encoding import UpdateEncodingError, decode, most_bytes

STATEMENT_LIMIT_BYTES = 64 * 1024
# Below this a standard normal's tail, and a Poisson lot's, is under exp(-32) = 1.3e-14.
_TAIL = 8.0

# Refusals that an honest site running installed code cannot cause: the site is quarantined.
HOSTILE_CODES = frozenset(
    {
        "update-oversized",
        "signature-invalid",
        "site-mismatch",
        "payload-mismatch",
        "size-mismatch",
        "update-replayed",
        "shape-mismatch",
        "update-not-finite",
        "norm-exceeded",
        "noise-missing",
        "secure-signature",
    }
    | PEER_HEAD_CODES
)


@dataclasses.dataclass(frozen=True)
class Admission:
    """What an update is held against.

    Attributes:
        plan: the job's plan.
        round: the round that is collecting.
        site: the site whose authenticated connection delivered the parcel.
        identity: that site's enrolled signing key.
        seen: whether a payload of this SHA-256 was ever admitted in this job.
        retired: keys that the site has replaced.
    """

    plan: RoundPlan
    round: int
    site: str
    identity: PublicIdentity
    seen: Callable[[str], bool]
    retired: tuple[PublicIdentity, ...] = ()

    @property
    def masked(self) -> bool:
        """Whether updates are masked: uniformly random words, that no number can be checked of."""
        return self.plan.privacy_mode == "secure-aggregation"

    @property
    def most_bytes(self) -> int:
        """Largest update of D numbers, in the plan's encoding or as words of its FixedPoint."""
        size = self.plan.adapter.size
        if self.masked:
            return size * FixedPoint.of(self.plan).word_bytes
        return most_bytes(self.plan.update_encoding, size)


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """A parcel under examination; `header` is believed only as far as its signature."""

    parcel: Parcel
    header: UpdateHeader
    plan: RoundPlan

    @functools.cached_property
    def update_D(self) -> Vector:  # noqa: N802 - shape suffix
        """The update's numbers. Raises UpdateEncodingError."""
        return decode(self.parcel.payload, self.plan.update_encoding, self.plan.adapter.size)


Check = Callable[[_Candidate, Admission], bool]


def norm_bound(plan: RoundPlan) -> float:
    """Largest L2 norm that an honest site's noisy sum can plausibly have.

    The signal is at most C per sampled subject; the lot is bounded for a site of up to twice the
    plan's N̄ subjects plus a Poisson tail. ‖N(0, σ²C²I_D)‖ ≤ σC(√D + t) but for exp(-t²/2)
    (Laurent & Massart 2000, lemma 1).
    """
    lot = 2 * plan.sampling_rate * plan.expected_subjects
    signal = plan.clipping_norm * (lot + _TAIL * math.sqrt(lot) + _TAIL)
    deviation = plan.noise_multiplier * plan.clipping_norm
    return signal + deviation * (math.sqrt(plan.adapter.size) + _TAIL)


def _shaped(candidate: _Candidate, admission: Admission) -> bool:
    if admission.masked:
        return len(candidate.parcel.payload) == admission.most_bytes
    try:
        return candidate.update_D.shape == (admission.plan.adapter.size,)
    except UpdateEncodingError:
        return False


def _finite(candidate: _Candidate, _: Admission) -> bool:
    return bool(np.isfinite(candidate.update_D).all())


def _bounded(candidate: _Candidate, admission: Admission) -> bool:
    update_D = candidate.update_D.astype(np.float64)
    return float(np.linalg.norm(update_D)) <= norm_bound(admission.plan)


def _noised(candidate: _Candidate, admission: Admission) -> bool:
    # Even an empty lot is answered with noise, and no Gaussian vector is all zero.
    if admission.plan.privacy_mode == "none":
        return True
    return bool(candidate.update_D.any())


def _unseen(candidate: _Candidate, admission: Admission) -> bool:
    # Without noise honest updates may be equal: those of two empty lots are all zero.
    if admission.plan.privacy_mode == "none":
        return True
    return not admission.seen(candidate.parcel.payload_sha256)


CHECKS: tuple[tuple[str, Check], ...] = (
    ("site-mismatch", lambda c, a: c.header.site == a.site),
    ("job-mismatch", lambda c, a: c.header.job == a.plan.job),
    ("plan-mismatch", lambda c, a: c.header.plan_sha256 == a.plan.sha256),
    ("round-mismatch", lambda c, a: c.header.round == a.round),
    ("payload-mismatch", lambda c, _: c.header.payload_sha256 == c.parcel.payload_sha256),
    ("size-mismatch", lambda c, _: c.header.size_bytes == len(c.parcel.payload)),
    ("shape-mismatch", _shaped),
    ("update-replayed", _unseen),
)
OPEN_CHECKS: tuple[tuple[str, Check], ...] = (
    ("update-not-finite", _finite),
    ("norm-exceeded", _bounded),
    ("noise-missing", _noised),
)


def admit(parcel: Parcel, admission: Admission) -> UpdateHeader:
    """The update's verified header. Raises AdmissionError with the failed check's code."""
    _require(parcel.kind == "update", "kind-unexpected")
    _require(len(parcel.statement) <= STATEMENT_LIMIT_BYTES, "update-oversized")
    # A payload larger than the plan's is refused before it is hashed or copied.
    _require(len(parcel.payload) <= admission.most_bytes, "update-oversized")
    try:
        header = open_as(UpdateHeader, parcel.statement, (admission.identity,))
    except AuricleError as error:
        raise _refusal(_signature_code(parcel, admission)) from error
    candidate = _Candidate(parcel, header, admission.plan)
    for code, passes in CHECKS if admission.masked else (*CHECKS, *OPEN_CHECKS):
        _require(passes(candidate, admission), code)
    return header


def _signature_code(parcel: Parcel, admission: Admission) -> str:
    """What is wrong with a signature; an honest site may send again what it signed before."""
    try:
        open_as(UpdateHeader, parcel.statement, admission.retired)
    except AuricleError:
        return "signature-invalid"
    return "key-retired"


def _require(holds: bool, code: str) -> None:
    if not holds:
        raise _refusal(code)


def _refusal(code: str) -> AdmissionError:
    return AdmissionError(
        f"the update fails the check {code}",
        remedy="the site's operator finds the same code in the site's ledger",
        code=code,
    )
