"""Why a step of secure aggregation is refused."""

from __future__ import annotations

from privacy.errors import AuricleError


class SecureAggregationError(AuricleError):
    """A message of secure aggregation is not what the protocol allows; nothing was revealed.

    Codes: "secure-session" (no such step is due), "secure-conflict" (a step is asked for again
    with other content), "secure-roster", "secure-signature", "secure-shares", "secure-survivors",
    "secure-confirmations", "secure-input" and "secure-sum".
    """

    code = "secure-session"
    exit_code = 15


def require(holds: bool, code: str, problem: str) -> None:
    """Raise SecureAggregationError unless `holds`."""
    if not holds:
        raise SecureAggregationError(
            f"secure aggregation is refused: {problem}",
            remedy="compare the ledgers of coordinator and sites; if both run the same version, "
            "treat the sender as compromised",
            code=code,
        )
