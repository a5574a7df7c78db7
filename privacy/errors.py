"""The error tree shared by the rooms that handle private data.

Every error says what happened, why, and what to do next, and carries a stable code. The code is
the only part of an error that may leave a site: `problem` and `remedy` are for the person at the
console and may name local things.
"""

from __future__ import annotations


class AuricleError(Exception):
    """Base of every error that Auricle raises on purpose.

    Attributes:
        code: stable kebab-case identifier; safe to send off site and to log.
        problem: what happened and why, for the person at this machine. Never sent off site.
        remedy: what to do next, in the imperative.
        exit_code: process exit status used by the command line.
    """

    code = "internal"
    exit_code = 1

    def __init__(self, problem: str, *, remedy: str, code: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy
        if code is not None:
            self.code = code


class PlanError(AuricleError):
    """A round plan is malformed, out of range, or does not match its signature or hash."""

    code = "plan-invalid"
    exit_code = 3


class SignatureError(AuricleError):
    """A signed statement does not verify against the keys trusted for it."""

    code = "signature-invalid"
    exit_code = 4


class BudgetError(AuricleError):
    """A reservation would pass a privacy cap, or the budget store is inconsistent."""

    code = "budget-exceeded"
    exit_code = 5


class LedgerError(AuricleError):
    """The ledger does not verify; the service must stop (invariant I4)."""

    code = "ledger-invalid"
    exit_code = 6


class AccountingError(AuricleError):
    """The accountants disagree beyond their known bounds, or were given impossible parameters."""

    code = "accounting-refused"
    exit_code = 7


class UnsupportedLayerError(AuricleError):
    """The per-subject gradient engine does not know a layer and refuses to guess."""

    code = "layer-unsupported"
    exit_code = 8


class StoreError(AuricleError):
    """A database cannot be opened as it was asked for."""

    code = "database-invalid"
    exit_code = 15
