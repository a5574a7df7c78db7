"""Why a quorum was missed, in words."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shortfall:
    """Why a quorum was missed: codes of the sites that refused or were refused, and who is silent.

    `late` tells silence at the deadline from answers that could no longer make the quorum.
    """

    refused: dict[str, str]
    missing: list[str]
    late: bool

    def explain(self, what: str) -> str:
        """`what` and its causes, as "below quorum: north refused (policy-adapter)"."""
        causes = [f"{site} refused ({code})" for site, code in self.refused.items()]
        if self.missing and self.late:
            causes.append(f"no answer from {', '.join(self.missing)}")
        elif self.missing:
            causes.append(f"{', '.join(self.missing)} not waited for")
        return f"{what}: {'; '.join(causes)}" if causes else what
