"""Withdrawal of consent: never sampled again, cached states deleted, and when is on record."""

from __future__ import annotations

from pathlib import Path

from client_node.features import forget_states
from client_node.store import SiteStore
from privacy.private_log import PrivateLog


def withdraw_consent(subject: str, store: SiteStore, features: Path, log: PrivateLog) -> int:
    """Withdraw `subject`'s consent; returns how many recordings it concerns.

    Takes effect at the next round's sampling. Adapters trained before stay as they are: their
    dependence on this subject is what ε bounds. Raises SiteError where the subject is unknown.
    """
    hashes = store.withdraw_consent(subject)
    forget_states(features, hashes)
    # A count of one and no name: the log is shown to auditors. On the ledger the entry would be
    # counted by the coordinator, which sees the ledger's size each round.
    log.append("consent.withdrawn", {"subjects": 1, "recordings": len(hashes)})
    return len(hashes)
