"""One private round at a site, in the one order that never under-counts and never draws twice.

claim → reserve ε (durable) → train, clip, noise → ledger → seal with its receipt (one transaction)
→ commit ε → ledger → settled. A crash before the seal loses the round and keeps its reservation as
spent; a crash after it resends the same bytes (invariants I1 and I2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Protocol

from client_node.errors import RefusalError
from client_node.outbox import Outbox, OutboxEntry
from privacy.budget import Budget
from privacy.errors import AccountingError, AuricleError, BudgetError
from privacy.ledger import Ledger
from privacy.ledger_events import MechanismRun
from privacy.parcel import Parcel, RoundOrder, UpdateHeader
from privacy.plan import RoundPlan
from privacy.signing import Identity, seal


class Trainer(Protocol):
    """Private training, as the agent sees it."""

    @property
    def random_source(self) -> str:
        """Name of the source of sampling and noise, for the ledger."""
        ...

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        """Attach the plan's adapter. Raises with a refusal code where this site cannot."""
        ...

    def train(self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes) -> bytes:
        """The noisy sum of one round, [D] little-endian float32, from the adapter's `vector`."""
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
        outbox: Outbox,
        keep_receipt: Callable[[Parcel], None],
    ) -> None:
        """`keep_receipt` stores the exact bytes of a parcel that is about to leave."""
        self._site = site
        self._identity = identity
        self._trainer = trainer
        self._budget = budget
        self._ledger = ledger
        self._outbox = outbox
        self._keep_receipt = keep_receipt

    def find(self, job: str, round_: int) -> OutboxEntry | None:
        """What is known of a round."""
        return self._outbox.find(job, round_)

    def last_round(self, job: str) -> int:
        """The highest round of `job` ever started here."""
        return self._outbox.last_round(job)

    def run(self, plan: RoundPlan, basis: bytes, order: RoundOrder, vector: bytes) -> Parcel:
        """Train and seal one round. The caller has verified plan and order.

        Raises BudgetError before anything is drawn; RefusalError("round-interrupted") where the
        round was begun before; whatever the trainer raises, and then the reservation stays spent.
        """
        if not self._outbox.start(order.job, order.round, order.payload_sha256):
            raise _interrupted()
        try:
            self._budget.reserve(plan, order.round)
        except (BudgetError, AccountingError):
            self._outbox.release(order.job, order.round)
            raise
        run = self._mechanism(plan, order.round)
        self._ledger.append("budget.reserved", run.fields())
        payload = self._train(plan, basis, order.round, vector)
        self._ledger.append("round.trained", run.fields())
        update = self._seal(order, payload)
        self._outbox.seal(order.job, order.round, update, lambda: self._keep_receipt(update))
        self._settle(plan, order.round, update)
        return update

    def resend(self, plan: RoundPlan, entry: OutboxEntry) -> Parcel:
        """The sealed bytes of a round again. Raises RefusalError where it was lost in a crash."""
        if entry.update is None:
            raise _interrupted()
        if not entry.settled:
            self._settle(plan, entry.round, entry.update)
        return entry.update

    def unsettled(self) -> list[OutboxEntry]:
        """Rounds that a crash kept from being settled; `resend` settles them."""
        return self._outbox.unsettled()

    def _train(self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes) -> bytes:
        try:
            return self._trainer.train(plan, basis, round_, vector)
        except AuricleError:
            raise
        except Exception as error:
            raise RefusalError(
                "training-failed",
                f"training stopped with {type(error).__name__}",
                remedy="see the fault's place in logs/site.log",
            ) from error

    def _mechanism(self, plan: RoundPlan, round_: int) -> MechanismRun:
        raise NotImplementedError

    def _seal(self, order: RoundOrder, payload: bytes) -> Parcel:
        head = self._ledger.tree_head()
        header = UpdateHeader(
            job=order.job,
            round=order.round,
            site=self._site,
            plan_sha256=order.plan_sha256,
            payload_sha256=hashlib.sha256(payload).hexdigest(),
            size_bytes=len(payload),
            tree_head=head.root,
            tree_size=head.size,
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


def _interrupted() -> RefusalError:
    return RefusalError(
        "round-interrupted",
        "this round was begun and lost; its reservation counts as spent and it is not drawn again",
        remedy="nothing to do: the next round can run",
    )
