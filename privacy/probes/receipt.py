"""What the probes of one round found: pass or fail and the bound that was held, nothing measured.

A measured value would leak: the norm of a round's noise, for one, narrows down the sum beneath it.
So a receipt has names and constants only, and is the same for every round that passes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from privacy.errors import AuricleError

SUITE = "auricle/probes/v1"
PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not-applicable"
PROBES = ("sensitivity", "alone-equals-in-batch", "noise", "sampler")


class ProbeError(AuricleError):
    """A probe failed: the step that trained is not the mechanism that is accounted for."""

    code = "probe-failed"
    exit_code = 9

    def __init__(self, receipt: ProbeReceipt) -> None:
        failed = ", ".join(result.name for result in receipt.results if result.outcome == FAILED)
        super().__init__(
            f"the round's update is not sent: {failed} failed",
            remedy="do not train with this installation; `auricle ledger show` names the check",
        )
        self.receipt = receipt


@dataclasses.dataclass(frozen=True)
class ProbeResult:
    """One probe's outcome.

    Attributes:
        name: one of `PROBES`.
        outcome: "passed", "failed", or "not-applicable" where the plan claims nothing to probe.
        failed: names of the checks that failed; never a measured value.
    """

    name: str
    outcome: str
    failed: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ProbeReceipt:
    """Outcomes of every probe of one round, in the order of `PROBES`."""

    results: tuple[ProbeResult, ...]

    @property
    def passed(self) -> bool:
        """Whether no probe failed."""
        return all(result.outcome != FAILED for result in self.results)

    def require_passed(self) -> Self:
        """Return self. Raises ProbeError where a probe failed."""
        if not self.passed:
            raise ProbeError(self)
        return self

    def fields(self) -> dict[str, Any]:
        """For a ledger event: the suite, each outcome, and the failed checks where there are."""
        fields: dict[str, Any] = {"suite": SUITE}
        fields |= {result.name: result.outcome for result in self.results}
        failed = [f"{result.name}/{check}" for result in self.results for check in result.failed]
        return fields | ({"failed": failed} if failed else {})


def outcome_of(name: str, checks: Mapping[str, bool]) -> ProbeResult:
    """The result of a probe from whether each of its checks held."""
    failed = tuple(check for check, held in checks.items() if not held)
    return ProbeResult(name, FAILED if failed else PASSED, failed)


def require_probed(probes: Mapping[str, Any], noise_multiplier: float) -> None:
    """Check an event's probe fields as an auditor does. Raises ValueError saying what is missing.

    Only a run without noise may leave out the probes of noise and sampling.
    """
    if probes.get("suite") != SUITE:
        raise ValueError("it trains without the probes that its plan demands")
    for name in PROBES:
        free = noise_multiplier == 0 and name in ("noise", "sampler")
        if probes.get(name) not in ((PASSED, NOT_APPLICABLE) if free else (PASSED,)):
            raise ValueError(f"its probe {name} did not pass")
