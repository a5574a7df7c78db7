"""The release desk: signs, lists, publishes and withdraws releases, and writes their files."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import TYPE_CHECKING, Any

from coordinator.errors import CoordinatorError
from coordinator.model_card import card_text
from coordinator.release import Parent, make_manifest, manifest_sha256, write_files
from coordinator.release_records import SiteAnswer, StoredRelease, current_of, require_held
from privacy.parcel import ReleaseEvaluation, ReleaseManifest
from privacy.plan import RoundPlan
from privacy.signing import open_as, open_statement, payload_type_of, seal

if TYPE_CHECKING:
    from coordinator.job import Tools

# Reasons enter the ledger and cross to sites: a code, no text.
_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")


@dataclasses.dataclass(frozen=True)
class ReleaseLine:
    """One release in a list. `current` tells the one that sites should serve.

    `epsilon_loc` is None where nothing is guaranteed.
    """

    release: str
    job: str
    purpose: str
    state: str
    current: bool
    issued_at: str
    epsilon_loc: float | None
    delta: float
    sites_ok: int
    sites_refused: int


@dataclasses.dataclass(frozen=True)
class ReleaseView:
    """One release in full: its line, signed manifest, card, life and the sites' answers.

    `manifest` is the canonical JSON that was signed; `history` has (state, seconds since the epoch,
    reason) of each event.
    """

    line: ReleaseLine
    manifest: dict[str, Any]
    manifest_sha256: str
    size_bytes: int
    base_folder: str
    card: str
    history: tuple[tuple[str, float, str], ...]
    answers: tuple[SiteAnswer, ...]


class ReleaseDesk:
    """The verbs of releases, over the coordinator's tools."""

    def __init__(self, tools: Tools) -> None:
        self._tools = tools

    def sign(
        self,
        plan: RoundPlan,
        adapter: bytes,
        evaluation: ReleaseEvaluation | None,
        now_s: float,
    ) -> tuple[ReleaseManifest, bytes]:
        """The manifest of an adapter, as of now, and its signed envelope."""
        tools = self._tools
        current = tools.releases.current()
        parent = None
        if current is not None:
            digest = manifest_sha256(current.statement, tools.identity.public)
            parent = Parent(current.release, digest)
        manifest = make_manifest(
            plan,
            adapter,
            tools.journal.ledger,
            now_s,
            parent=parent,
            evaluation=evaluation,
            labels=tools.labels,
        )
        return manifest, seal(manifest, tools.identity)

    def overview(self) -> list[ReleaseLine]:
        """Every release, oldest first."""
        stored = self._tools.releases.all()
        current = current_of(stored)
        return [self._line(one, current) for one in stored]

    def show(self, release: str) -> ReleaseView:
        """One release in full. Raises CoordinatorError ("release-unknown")."""
        tools = self._tools
        stored = tools.releases.load(release)
        record = tools.jobs.load(stored.job)
        manifest = self._manifest(stored)
        kind, signer = payload_type_of(ReleaseManifest), (tools.identity.public,)
        payload = open_statement(stored.statement, kind, signer)
        return ReleaseView(
            line=self._line(stored, tools.releases.current()),
            manifest=json.loads(payload),
            manifest_sha256=hashlib.sha256(payload).hexdigest(),
            size_bytes=len(tools.releases.adapter(release)),
            base_folder=str(record.request.base_folder),
            card=card_text(manifest, record.plan),
            history=tuple((event.state, event.at_s, event.code) for event in stored.events),
            answers=tuple(sorted(stored.answers.values(), key=lambda one: (one.at_s, one.site))),
        )

    def adapter(self, release: str) -> bytes:
        """The adapter's safetensors bytes. Raises CoordinatorError ("release-unknown")."""
        return self._tools.releases.adapter(release)

    def publish(self, release: str, evaluation: ReleaseEvaluation | None = None) -> None:
        """Make a held release the one that sites serve, under a manifest signed now.

        `evaluation` replaces the one that it was held with. Raises CoordinatorError.
        """
        tools = self._tools
        stored = tools.releases.load(release)
        require_held(stored)
        now_s = tools.clock()
        tools.journal.flush()
        _, statement = self.sign(
            tools.jobs.load(stored.job).plan,
            tools.releases.adapter(release),
            evaluation or self._manifest(stored).evaluation,
            now_s,
        )
        tools.releases.publish(release, statement, now_s)
        tools.journal.flush()
        self.write_files(release)

    def withdraw(self, release: str, code: str) -> None:
        """Withdraw a release for good, for the reason `code`. Raises CoordinatorError."""
        if not _CODE.fullmatch(code):
            raise CoordinatorError(
                "the reason is not a code",
                remedy="give lower-case letters, digits and hyphens, as in worse-on-numbers",
                code="reason-malformed",
            )
        self._tools.releases.withdraw(release, code, self._tools.clock())
        self._tools.journal.flush()

    def write_files(self, release: str) -> None:
        """Copy a release to its folder: adapter, manifest, card."""
        tools = self._tools
        stored = tools.releases.load(release)
        card = card_text(self._manifest(stored), tools.jobs.load(stored.job).plan)
        folder = tools.releases_folder / release
        write_files(folder, stored.statement, tools.releases.adapter(release), card)

    def _manifest(self, stored: StoredRelease) -> ReleaseManifest:
        return open_as(ReleaseManifest, stored.statement, (self._tools.identity.public,))

    def _line(self, stored: StoredRelease, current: StoredRelease | None) -> ReleaseLine:
        manifest = self._manifest(stored)
        codes = [one.code for one in stored.answers.values() if one.kind == "release"]
        return ReleaseLine(
            release=stored.release,
            job=stored.job,
            purpose=self._tools.jobs.load(stored.job).plan.purpose,
            state=stored.state,
            current=current is not None and current.release == stored.release,
            issued_at=manifest.issued_at,
            epsilon_loc=None if math.isinf(manifest.epsilon_loc) else manifest.epsilon_loc,
            delta=manifest.delta,
            sites_ok=codes.count("ok"),
            sites_refused=len(codes) - codes.count("ok"),
        )
