"""The site's agent: one parcel in, one parcel out, and nothing but a code when it says no.

Every parcel is verified against the coordinator's pinned key before a field of it is believed; a
plan must pass the site's policy when it arrives and again at each round. All that it does is on the
ledger; all that leaves has a receipt.
"""

from __future__ import annotations

import dataclasses
import hashlib
import threading
import time
from collections.abc import Callable

from client_node.errors import RefusalError, coordinators_ledger, refusal_code, require
from client_node.peers import PeerBook
from client_node.policy import SitePolicy
from client_node.private_round import PrivateRounds, Trainer
from client_node.release_duty import ReleaseDuty, Releases
from client_node.secure_round import SECURE_ORDERS, Protect, SecureOrder, SecureRounds
from client_node.site_log import SiteLog
from client_node.store import PlanBook
from privacy.budget import Budget
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.parcel import (
    Answer,
    Parcel,
    ParcelKind,
    ReleaseManifest,
    ReleaseOffer,
    ReleaseWithdrawal,
    RoundOrder,
)
from privacy.peer_heads import Checkpoint, PeerHeads
from privacy.plan import JOB_NAME, RoundPlan
from privacy.secure_aggregation.messages import KeysOrder, MaskOrder
from privacy.signing import (
    Identity,
    PublicIdentity,
    open_as,
    open_statement,
    payload_type_of,
    seal,
)

FLOAT32_BYTES = 4
_EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
MAX_STATEMENT_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class _Asked:
    """What a verified parcel asks about; empty until its signature has been checked."""

    subject_sha256: str
    job: str = ""
    round: int = 0


class SiteAgent:
    """Answers parcels for one site. Safe for several threads: one parcel at a time."""

    def __init__(
        self,
        *,
        site: str,
        identity: Identity,
        coordinator: PublicIdentity,
        policy: SitePolicy,
        plans: PlanBook,
        peers: PeerBook,
        rounds: PrivateRounds,
        secure_rounds: SecureRounds,
        trainer: Trainer,
        releases: Releases,
        budget: Budget,
        ledger: Ledger,
        heads: PeerHeads,
        keep_receipt: Callable[[Parcel], None],
        log: SiteLog,
    ) -> None:
        """Settles rounds that an earlier crash left sealed but unsettled.

        `heads` is the exchange of tree heads with the coordinator.
        """
        self._site = site
        self._identity = identity
        self._coordinator = coordinator
        self._policy = policy
        self._plans = plans
        self._peers = peers
        self._rounds = rounds
        self._secure_rounds = secure_rounds
        self._trainer = trainer
        self._releases = ReleaseDuty(
            releases, policy, coordinator, plans=plans, heads=heads, ledger=ledger
        )
        self._budget = budget
        self._ledger = ledger
        self._heads = heads
        self._keep_receipt = keep_receipt
        self._log = log
        self._lock = threading.Lock()
        self.failure: LedgerError | None = None
        """Set when the ledger no longer verifies; the service must then stop (I4)."""
        for entry in rounds.unsettled():
            rounds.resend(self._plan(entry.job)[0], entry)

    def handle(self, parcel: Parcel) -> Parcel:
        """Answer one parcel; whatever goes wrong on the way becomes a refusal with a code."""
        started = time.monotonic()
        with self._lock:
            asked = _Asked(hashlib.sha256(parcel.statement).hexdigest())
            try:
                asked, act = self._verify(parcel)
                reply = act()
            except Exception as error:  # noqa: BLE001 - the boundary: a code leaves, never words
                reply = self._refuse(asked, error)
        self._log.event(
            f"parcel-{reply.kind}",
            round=asked.round,
            seconds=round(time.monotonic() - started, 3),
            size_bytes=reply.size_bytes,
        )
        return reply

    def refuse(self, code: str) -> Parcel:
        """A refusal of something that was not even a parcel."""
        with self._lock:
            error = RefusalError(code, "not a parcel", remedy="check both sides' versions")
            return self._refuse(_Asked(hashlib.sha256(b"").hexdigest()), error)

    def _verify(self, parcel: Parcel) -> tuple[_Asked, Callable[[], Parcel]]:
        """Check the signature; returns what is asked and the work that answers it."""
        if self.failure is not None:
            raise self.failure
        trusted = (self._coordinator,)
        statement, payload = parcel.statement, parcel.payload
        if parcel.kind == "prepare":
            plan = open_as(RoundPlan, statement, trusted, MAX_STATEMENT_BYTES)
            asked = _Asked(plan.sha256, plan.job)
            return asked, lambda: self._prepare(asked, plan, payload)
        if parcel.kind == "round":
            order = open_as(RoundOrder, statement, trusted)
            _require_names(order.job, order.round)
            asked = _Asked(order.payload_sha256, order.job, order.round)
            return asked, lambda: self._round(order, payload)
        if (kind := SECURE_ORDERS.get(parcel.kind)) is not None:
            secure = open_as(kind, statement, trusted, MAX_STATEMENT_BYTES)
            _require_names(secure.job, secure.round)
            named = hashlib.sha256(statement).hexdigest()
            asked = _Asked(named, secure.job, secure.round)
            return asked, lambda: self._secure(secure, parcel)
        if parcel.kind == "offer":
            offer = open_as(ReleaseOffer, statement, trusted)
            _, asked = self._asked_release(offer.manifest.encode())
            return asked, lambda: self._offer(asked, offer, parcel)
        if parcel.kind == "withdraw":
            withdrawal = open_as(ReleaseWithdrawal, statement, trusted)
            _require_names(withdrawal.job)
            asked = _Asked(withdrawal.manifest_sha256, withdrawal.job)
            return asked, lambda: self._withdraw(asked, withdrawal)
        if parcel.kind == "release":
            manifest, asked = self._asked_release(statement)
            return asked, lambda: self._release(asked, manifest, parcel)
        raise RefusalError(
            "parcel-invalid",
            "a coordinator does not send this kind of parcel",
            remedy="check that coordinator and site run the same version of Auricle",
        )

    def _asked_release(self, statement: bytes) -> tuple[ReleaseManifest, _Asked]:
        trusted = (self._coordinator,)
        manifest = open_as(ReleaseManifest, statement, trusted)
        _require_names(manifest.job)
        signed = open_statement(statement, payload_type_of(ReleaseManifest), trusted)
        return manifest, _Asked(hashlib.sha256(signed).hexdigest(), manifest.job)

    def _prepare(self, asked: _Asked, plan: RoundPlan, basis: bytes) -> Parcel:
        expected = plan.adapter.basis_sha256 or _EMPTY_SHA256
        require(hashlib.sha256(basis).hexdigest() == expected, "payload-mismatch")
        self._veto(plan)
        if plan.privacy_mode == "secure-aggregation":
            self._peers.require(plan)
        # A job that the budget cannot see to its end is not begun.
        self._budget.require_room(plan, plan.rounds)
        self._trainer.check(plan, basis)
        if self._plans.find(plan.job) is None:
            self._ledger.append(
                "plan.accepted",
                {
                    "job": plan.job,
                    "plan_sha256": plan.sha256,
                    "policy_sha256": self._policy.sha256,
                    "rounds": plan.rounds,
                },
            )
        require(self._plans.accept(plan.job, plan.sha256, plan.to_json(), basis), "plan-mismatch")
        if plan.privacy_mode == "secure-aggregation":
            self._peers.pin(plan)
        return self._answer("accepted", asked, "ok")

    def _round(
        self, order: RoundOrder, vector: bytes, masking: Callable[[], Protect] | None = None
    ) -> Parcel:
        plan, basis = self._plan(order.job)
        require(plan.sha256 == order.plan_sha256, "plan-mismatch")
        secure = plan.privacy_mode == "secure-aggregation"
        require(secure == (masking is not None), "aggregation-mismatch")
        require(hashlib.sha256(vector).hexdigest() == order.payload_sha256, "payload-mismatch")
        require(len(vector) == plan.adapter.size * FLOAT32_BYTES, "payload-mismatch")
        if (entry := self._rounds.find(order.job, order.round)) is not None:
            require(entry.order_sha256 == order.payload_sha256, "round-conflict")
            return self._rounds.resend(plan, entry)
        require(1 <= order.round <= plan.rounds, "round-out-of-range")
        require(order.round > self._rounds.last_round(order.job), "round-stale")
        self._veto(plan)
        with coordinators_ledger():
            self._heads.take(
                Checkpoint(order.tree_size, order.tree_head, order.peer_size, order.proofs)
            )
        return self._rounds.run(plan, basis, order, vector, masking() if masking else None)

    def _secure(self, order: SecureOrder, parcel: Parcel) -> Parcel:
        """One step of secure aggregation; only with an update's masks does a site train."""
        if isinstance(order, MaskOrder):
            return self._round(
                order.order, parcel.payload, lambda: self._secure_rounds.masking(order)
            )
        plan, _ = self._plan(order.job)
        require(plan.sha256 == order.plan_sha256, "plan-mismatch")
        require(plan.privacy_mode == "secure-aggregation", "aggregation-mismatch")
        if isinstance(order, KeysOrder):
            require(1 <= order.round <= plan.rounds, "round-out-of-range")
            require(order.round > self._rounds.last_round(order.job), "round-stale")
            self._veto(plan)
            self._peers.require(plan)
        return self._secure_rounds.answer(order, parcel.statement, plan)

    def _release(self, asked: _Asked, manifest: ReleaseManifest, parcel: Parcel) -> Parcel:
        self._releases.take(manifest, parcel)
        return self._answer("activated", asked, "ok")

    def _offer(self, asked: _Asked, offer: ReleaseOffer, parcel: Parcel) -> Parcel:
        manifest, _ = self._asked_release(offer.manifest.encode())
        self._releases.take_offer(offer, manifest, parcel.payload)
        return self._answer("activated", asked, "ok")

    def _withdraw(self, asked: _Asked, withdrawal: ReleaseWithdrawal) -> Parcel:
        self._releases.withdraw(withdrawal)
        return self._answer("withdrawn", asked, "ok")

    def _veto(self, plan: RoundPlan) -> None:
        codes = self._policy.veto(plan, site=self._site, coordinator=self._coordinator.key_id)
        if codes:
            facts = {"job": plan.job, "plan_sha256": plan.sha256, "codes": codes}
            self._ledger.append("plan.vetoed", facts | {"policy_sha256": self._policy.sha256})
            raise RefusalError(
                codes[0],
                f"the plan breaks this site's policy: {', '.join(codes)}",
                remedy="ask the coordinator's operator for another plan, or change policy.toml",
            )

    def _plan(self, job: str) -> tuple[RoundPlan, bytes]:
        known = self._plans.find(job)
        if known is None:
            raise RefusalError(
                "plan-unknown",
                "this site has accepted no plan of that job",
                remedy="let the coordinator send the plan first",
            )
        return RoundPlan.from_json(known[0]), known[1]

    def _refuse(self, asked: _Asked, error: Exception) -> Parcel:
        code = refusal_code(error)
        self._log.event(f"refused-{code}", round=asked.round)
        self._log.fault(error)
        if self.failure is None:
            try:
                facts = {"job": asked.job, "round": asked.round, "code": code}
                self._ledger.append("parcel.refused", facts)
            except LedgerError as broken:
                self.failure = broken
        if isinstance(error, LedgerError):
            self.failure = error
            code = LedgerError.code
        return self._answer("refused", asked, code)

    def _answer(self, kind: ParcelKind, asked: _Asked, code: str) -> Parcel:
        answer = Answer(
            job=asked.job,
            round=asked.round,
            site=self._site,
            subject_sha256=asked.subject_sha256,
            code=code,
            peer_size=self._heads.held(),
        )
        parcel = Parcel(kind, seal(answer, self._identity))
        self._keep_receipt(parcel)
        return parcel


def _require_names(job: str, round_: int = 0) -> None:
    """Refuse what could not be written to the ledger: failing to write there stops the service."""
    require(JOB_NAME.fullmatch(job) is not None and round_ >= 0, "parcel-invalid")
