"""What a site does about releases: takes, tries, refuses and gives them up, and records each.

A release that does not verify leaves nothing. One that verifies and does not pass this site's own
canary is kept, does not serve, and the ledger says so; the coordinator learns one code, the same
whatever the canary disliked, so that no score of a site's recordings leaves it.
"""

from __future__ import annotations

from typing import Protocol

from client_node.errors import RefusalError, coordinators_ledger, require
from client_node.policy import SitePolicy
from client_node.release_state import Withdrawn
from client_node.store import PlanBook
from privacy.ledger import Ledger
from privacy.parcel import Parcel, ReleaseManifest, ReleaseOffer, ReleaseWithdrawal
from privacy.peer_heads import Checkpoint, PeerHeads
from privacy.plan import RoundPlan
from privacy.signing import PublicIdentity

CANARY_CODE = "release-canary"


class CanaryError(RefusalError):
    """A release that this site's canary refuses: `finding` says why, here; the code says less."""

    def __init__(self, finding: str, problem: str, *, remedy: str) -> None:
        super().__init__(CANARY_CODE, problem, remedy=remedy)
        self.finding = finding


class Releases(Protocol):
    """Verified releases, as the agent sees them (`client_node.assembly.CheckedReleases`)."""

    def stage(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        """Verify a release and keep it."""
        ...

    def activate(self, release: str) -> object:
        """Make a kept release the one that serves. Raises CanaryError."""
        ...

    def withdraw(self, release: str, code: str) -> Withdrawn:
        """Never serve a release again."""
        ...


class ReleaseDuty:
    """Carries out the coordinator's verified release parcels for one site."""

    def __init__(
        self,
        releases: Releases,
        policy: SitePolicy,
        coordinator: PublicIdentity,
        *,
        plans: PlanBook,
        heads: PeerHeads,
        ledger: Ledger,
    ) -> None:
        """`heads` is the exchange of ledger heads with `coordinator`."""
        self._releases = releases
        self._policy = policy
        self._coordinator = coordinator
        self._plans = plans
        self._heads = heads
        self._ledger = ledger

    def take(self, manifest: ReleaseManifest, parcel: Parcel) -> None:
        """A job's release: keep it, try it, serve it. Raises what refuses it."""
        self._check(manifest)
        with coordinators_ledger():
            self._heads.note(manifest.tree_size, manifest.tree_head)
        self._serve(parcel.statement, parcel.payload)

    def take_offer(self, offer: ReleaseOffer, manifest: ReleaseManifest, adapter: bytes) -> None:
        """A release offered outside of a job. Raises what refuses it."""
        named = (manifest.job, manifest.release)
        require(named == (offer.job, offer.release), "parcel-invalid")
        self._check(manifest)
        with coordinators_ledger():
            self._heads.take(
                Checkpoint(offer.tree_size, offer.tree_head, offer.peer_size, offer.proofs)
            )
        self._serve(offer.manifest.encode(), adapter)

    def withdraw(self, withdrawal: ReleaseWithdrawal) -> None:
        """Never serve a release again; where it serves, what served before it does."""
        self._trust()
        done = self._releases.withdraw(withdrawal.release, withdrawal.code)
        fields = {"release": withdrawal.release, "job": withdrawal.job}
        reason = {"code": withdrawal.code, "manifest_sha256": withdrawal.manifest_sha256}
        serving = {"was_serving": done.was_serving, "serves": done.serves or "base"}
        self._ledger.append("release.withdrawn", fields | reason | serving)

    def _check(self, manifest: ReleaseManifest) -> None:
        self._trust()
        if (known := self._plans.find(manifest.job)) is not None:
            plan = RoundPlan.from_json(known[0])
            require(plan.sha256 == manifest.plan_sha256, "plan-mismatch")

    def _trust(self) -> None:
        require(self._coordinator.key_id in self._policy.coordinators, "policy-coordinator")

    def _serve(self, statement: bytes, adapter: bytes) -> None:
        staged = self._releases.stage(statement, adapter)
        facts = {
            "release": staged.release,
            "job": staged.job,
            "adapter_sha256": staged.adapter_sha256,
            "base_sha256": staged.base_sha256,
        }
        try:
            self._releases.activate(staged.release)
        except CanaryError as refusal:
            self._ledger.append("release.refused", facts | {"code": refusal.finding})
            raise
        self._ledger.append("release.activated", facts)
