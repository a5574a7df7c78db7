"""One private round at a site, in the one order that never under-counts and never draws twice.

Reserve ε (durable, on the ledger) → sample, clip, noise → ledger → seal with its receipt (one
transaction) → commit ε → ledger → settled. A crash before the seal loses the round and keeps its
reservation as spent; a crash after it resends the same bytes (invariants I1 and I2). That the round
trained is on the ledger before its update is sealed, so that the tree head which the update states
covers it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

import numpy as np

from client_node.errors import RefusalError
from client_node.outbox import Outbox, OutboxEntry
from client_node.store import mechanism_events
from client_node.weights import require_trainable
from privacy.accountant import accountant_versions, epsilon_sec
from privacy.budget import Budget
from privacy.errors import AuricleError
from privacy.ledger import Ledger
from privacy.ledger_events import STOPPED, TRAINED, MechanismRun, TrainedRound
from privacy.parcel import Parcel, RoundOrder, UpdateHeader
from privacy.peer_heads import PeerHeads
from privacy.plan import RoundPlan
from privacy.private_log import PRIVATE_ROOT, PrivateLog
from privacy.probes import ProbeError, ProbeReceipt
from privacy.signing import Identity, seal
from privacy.update_encoding import encode


class TrainedUpdate(Protocol):
    """What a trainer answers.

    Attributes:
        payload: the noisy sum, [D] little-endian float32.
        probes: what the round's probes found.
    """

    @property
    def payload(self) -> bytes: ...

    @property
    def probes(self) -> ProbeReceipt: ...


class Trainer(Protocol):
    """Private training, as the agent sees it."""

    @property
    def random_source(self) -> str:
        """Name of the source of sampling and noise, for the ledger."""
        ...

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        """Attach the plan's adapter. Raises with a refusal code where this site cannot."""
        ...

    def check_weights(self, plan: RoundPlan, basis: bytes, vector: bytes) -> None:
        """Refuse weights at which clipping would bound nobody; touches no recording."""
        ...

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        """The noisy sum of one round, from the adapter's `vector`, with its probe receipt.

        Samples those who arrived in `arrivals` (`privacy.budget.Budget.arrivals`). Raises
        ProbeError where a probe failed.
        """
        ...


class PrivateRounds:
    """Runs rounds, resends sealed ones, and settles what a crash left open."""

    def __init__(
        self,
        *,
        site: str,
        identity: Identity,
        trainer: Trainer,
        budget: Budget,
        ledger: Ledger,
        private_log: PrivateLog,
        heads: PeerHeads,
        outbox: Outbox,
        keep_receipt: Callable[[Parcel], None],
        coins: np.random.Generator,
        code_version: str,
    ) -> None:
        """`heads` is the exchange of tree heads with the coordinator.

        `keep_receipt` stores the exact bytes of a parcel that is about to leave. `coins` round
        updates where the plan asks for small ones (`privacy.update_encoding`).
        """
        self._site = site
        self._identity = identity
        self._trainer = trainer
        self._budget = budget
        self._ledger = ledger
        self._private_log = private_log
        self._heads = heads
        self._outbox = outbox
        self._keep_receipt = keep_receipt
        self._coins = coins
        self._code_version = code_version

    def find(self, job: str, round_: int) -> OutboxEntry | None:
        """The sealed round, if it is."""
        return self._outbox.find(job, round_)

    def last_round(self, job: str) -> int:
        """The highest round of `job` sealed here."""
        return self._outbox.last_round(job)

    def run(
        self,
        plan: RoundPlan,
        basis: bytes,
        order: RoundOrder,
        vector: bytes,
        protect: Callable[[bytes], bytes] | None = None,
    ) -> Parcel:
        """Train and seal one round. The caller has verified plan and order.

        `protect` masks what was trained, before it is sealed.

        Raises, before anything is spent, RefusalError for weights out of range and BudgetError;
        RefusalError("round-interrupted") where the round was begun before; whatever the trainer
        raises, and then the reservation stays spent.
        """
        require_trainable(vector)
        self._trainer.check_weights(plan, basis, vector)
        # The reservation is on disk and on the ledger before anything is drawn under it.
        reservation = self._budget.reserve(plan, order.round)
        if not reservation.fresh:
            raise RefusalError(
                "round-interrupted",
                "this round was begun and lost; it counts as spent and is not drawn again",
                remedy="nothing to do: the next round can run",
            )
        arrivals = self._budget.arrivals(reservation)
        trained = self._train(plan, basis, order.round, vector, arrivals)
        claims = self._trained(plan, order.round, trained.probes)
        # One entry of the ledger for each round, whatever the private log has grown by.
        bound = {PRIVATE_ROOT: self._private_log.bind(plan.job, order.round)}
        self._ledger.append(TRAINED, claims.fields() | bound)
        # After the noise, and after the probes have looked at it: post-processing.
        if protect is None:
            payload = encode(trained.payload, plan.update_encoding, self._coins)
        else:
            payload = protect(trained.payload)
        update = self._seal(order, payload)
        self._outbox.seal(
            order.job,
            order.round,
            order.payload_sha256,
            update,
            receipt=lambda: self._keep_receipt(update),
        )
        self._settle(plan, order.round, update)
        return update

    def resend(self, plan: RoundPlan, entry: OutboxEntry) -> Parcel:
        """The sealed bytes of a round again, settled if a crash had kept it from that."""
        if not entry.settled:
            self._settle(plan, entry.round, entry.update)
        return entry.update

    def unsettled(self) -> list[OutboxEntry]:
        """Rounds that a crash kept from being settled; `resend` settles them."""
        return self._outbox.unsettled()

    def _train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        try:
            return self._trainer.train(plan, basis, round_, vector, arrivals)
        except ProbeError as error:
            # On the ledger before the coordinator hears of it; the reservation stays spent.
            failed = {"job": plan.job, "round": round_, "probes": error.receipt.fields()}
            self._ledger.append(STOPPED, failed)
            raise
        except AuricleError:
            raise
        except Exception as error:
            raise RefusalError(
                "training-failed",
                f"training stopped with {type(error).__name__}",
                remedy="see the fault's place in logs/site.log",
            ) from error

    def _trained(self, plan: RoundPlan, round_: int, probes: ProbeReceipt) -> TrainedRound:
        """What ran, and the ε claimed for the plan's purpose including this round."""
        events = mechanism_events(self._budget.engine, self._site, plan.purpose)
        return TrainedRound(
            run=MechanismRun.from_plan(plan, round_, self._site),
            base_sha256=plan.base_sha256,
            epsilon_loc=self._budget.spent(plan.purpose).epsilon_loc,
            epsilon_sec=epsilon_sec(events, plan.delta, plan.honest_sites),
            honest_sites=plan.honest_sites,
            random_source=self._trainer.random_source,
            code_version=self._code_version,
            accountant=accountant_versions(),
            plan_format=plan.format,
            probes=probes.fields(),
        )

    def _seal(self, order: RoundOrder, payload: bytes) -> Parcel:
        head = self._heads.show()
        header = UpdateHeader(
            job=order.job,
            round=order.round,
            site=self._site,
            plan_sha256=order.plan_sha256,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            size_bytes=len(payload),
            tree_head=head.root,
            tree_size=head.size,
            peer_size=head.peer_size,
            proofs=head.proofs,
        )
        return Parcel("update", seal(header, self._identity), payload)

    def _settle(self, plan: RoundPlan, round_: int, update: Parcel) -> None:
        # Reserving is idempotent per round: after a crash it finds the reservation again.
        self._budget.commit(self._budget.reserve(plan, round_))
        self._ledger.append(
            "update.sealed",
            {
                "job": plan.job,
                "round": round_,
                "statement_sha256": hashlib.sha256(update.statement).hexdigest(),
                "payload_sha256": update.payload_sha256,
                "size_bytes": update.size_bytes,
            },
        )
        self._outbox.settle(plan.job, round_)
