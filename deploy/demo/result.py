"""What a demo measured, and the one JSON object that it prints."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Score:
    """Held-out quality of one model at one site.

    Attributes:
        terms: share of the site's term occurrences transcribed right, in [0, 1]; None when the
            site has no vocabulary list.
        wer: word error rate over the same recordings, in [0, ∞).
    """

    terms: float | None
    wer: float


@dataclasses.dataclass(frozen=True)
class SiteResult:
    """One row of the last screen.

    Attributes:
        before: the base model.
        prompted: the base model given the site's terms as a prompt, no training: the baseline.
        after: the released model, trained under differential privacy.
        after_prompted: the released model given the terms as a prompt as well.
        noiseless: the same recipe without noise, in the demo's own process: the price of privacy.
        general_before: base model on other people's recordings (forgetting), None if not given.
        general_after: released model on the same.
        bytes_sent: bytes of every parcel that left the site.
        seconds: time the site spent training.
    """

    name: str
    subjects: int
    heldout: int
    before: Score
    prompted: Score | None
    after: Score
    after_prompted: Score | None
    noiseless: Score | None
    general_before: float | None
    general_after: float | None
    epsilon_loc: float
    epsilon_sec: float
    epsilon_cap: float
    bytes_sent: int
    seconds: float
    ledger_verified: bool

    def as_json(self) -> dict[str, Any]:
        """Flat fields, the names that the issue and scripts use."""
        flat = dataclasses.asdict(self)
        for moment in ("before", "prompted", "after", "after_prompted", "noiseless"):
            score = flat.pop(moment)
            flat[f"terms_{moment}"] = None if score is None else score["terms"]
            flat[f"wer_{moment}"] = None if score is None else score["wer"]
        return flat


@dataclasses.dataclass(frozen=True)
class DemoResult:
    """The whole demo."""

    rounds: int
    release: str
    release_folder: str
    ledger: str
    ledger_verified: bool
    seconds: float
    seconds_by_stage: dict[str, float]
    delta: float
    honest_sites: int
    sites: tuple[SiteResult, ...]

    @property
    def noiseless_share(self) -> float | None:
        """Share of the noiseless gain in terms right that the private run wins, over sites.

        None when the noiseless run was left out, has no terms, or gained nothing.
        """
        private = noiseless = 0.0
        for site in self.sites:
            if site.noiseless is None or site.noiseless.terms is None:
                return None
            if site.before.terms is None or site.after.terms is None:
                return None
            private += site.after.terms - site.before.terms
            noiseless += site.noiseless.terms - site.before.terms
        return private / noiseless if noiseless > 0 else None

    def as_json(self) -> dict[str, Any]:
        """One object; floats as measured, not rounded."""
        fields = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "sites"
        }
        return {
            **fields,
            "noiseless_share": self.noiseless_share,
            "sites": [site.as_json() for site in self.sites],
        }
