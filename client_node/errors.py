"""Errors of a site, and the only codes that may leave it.

`SiteError` speaks to the person at this machine: its text may name local things. What crosses to
the coordinator is a code from `REFUSAL_CODES` and nothing else (invariant I5).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from privacy.errors import AuricleError, LedgerError
from privacy.peer_heads import PEER_HEAD_CODES

REFUSAL_CODES = frozenset(
    {
        # The parcel itself.
        "parcel-invalid",
        "signature-invalid",
        "statement-too-large",
        "statement-malformed",
        "statement-kind",
        "statement-fields",
        "plan-invalid",
        "payload-mismatch",
        "weights-out-of-range",
        # Order of events.
        "plan-unknown",
        "plan-mismatch",
        "round-out-of-range",
        "round-stale",
        "round-conflict",
        "round-interrupted",
        # The coordinator's ledger, or what it says of ours (`privacy.peer_heads`).
        *PEER_HEAD_CODES,
        # This site's own policy.
        "policy-site",
        "policy-coordinator",
        "policy-base",
        "policy-adapter",
        "policy-purpose",
        "policy-delta",
        "policy-noise",
        "policy-unprotected",
        "policy-cohort",
        "policy-honest-sites",
        "policy-utterances",
        "policy-upload",
        "budget-exceeded",
        "budget-delta",
        "budget-unprotected",
        "budget-conflict",
        "plan-round",
        "plan-site",
        "accounting-refused",
        # Secure aggregation.
        "aggregation-mismatch",
        "peer-key-changed",
        "policy-peers",
        "secure-session",
        "secure-conflict",
        "secure-roster",
        "secure-signature",
        "secure-shares",
        "secure-survivors",
        "secure-confirmations",
        "secure-input",
        # Training.
        "base-checksum",
        "adapter-mismatch",
        "adapter-in-encoder",
        "layer-unsupported",
        "training-failed",
        "probe-failed",
        # Releases.
        "release-refused",
        "release-hash",
        "release-base",
        "release-size",
        "release-name",
        "release-conflict",
        "release-older",
        "release-missing",
        "release-pointer",
        "adapter-malformed",
        "adapter-target",
        "adapter-shape",
        "release-rolled-back",
        "release-withdrawn",
        "release-parent",
        "release-canary",
        # The node.
        "ledger-invalid",
        "internal",
    }
)


class SiteError(AuricleError):
    """Something at this site must be put right before work can go on."""

    code = "site-error"
    exit_code = 30


class ManifestError(SiteError):
    """A recordings manifest is wrong; nothing was imported."""

    code = "manifest-invalid"
    exit_code = 31


class LinkError(SiteError):
    """The coordinator cannot be reached, or is not who its invite said."""

    code = "coordinator-unreachable"
    exit_code = 32


class RefusalError(SiteError):
    """A parcel is refused; `code` says why and is all that the coordinator learns."""

    code = "internal"

    def __init__(self, code: str, problem: str, *, remedy: str) -> None:
        super().__init__(problem, remedy=remedy, code=code)


def refusal_code(error: BaseException) -> str:
    """The code from `REFUSAL_CODES` that stands for `error`; anything unknown is "internal"."""
    code = getattr(error, "code", None)
    return code if isinstance(code, str) and code in REFUSAL_CODES else "internal"


def require(holds: bool, code: str) -> None:
    """Refuse a parcel that fails the check `code`. Raises RefusalError."""
    if not holds:
        raise RefusalError(
            code,
            f"a parcel of the coordinator fails the check {code}",
            remedy="compare this site's ledger with the coordinator's",
        )


@contextmanager
def coordinators_ledger() -> Iterator[None]:
    """What is wrong with the coordinator's ledger refuses its parcel; ours is not at fault."""
    try:
        yield
    except LedgerError as error:
        if error.code not in PEER_HEAD_CODES:
            raise
        raise RefusalError(error.code, error.problem, remedy=error.remedy) from error
