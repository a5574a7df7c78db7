"""A site's side of secure aggregation: which step of which round is due, and the answers given.

Secrets of a round live in this process's memory. A site that restarts in the middle of a round has
dropped out of it: it makes no second keys for an update that it has sealed, and others hold the
shares that take its masks away. Each step is answered once; the same question again gets the same
bytes, another question for the same step is refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

from client_node.errors import RefusalError
from privacy.ledger import Ledger
from privacy.parcel import Parcel, SiteKind
from privacy.plan import RoundPlan
from privacy.secure_aggregation.agreement import RandomBytes
from privacy.secure_aggregation.fixed_point import unpack_integers
from privacy.secure_aggregation.messages import (
    KeysOrder,
    MaskOrder,
    Roster,
    SiteMessage,
    SurvivorList,
    UnmaskOrder,
)
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.site import Confirmed, Keyed, Masked, Ready, Shared, advertise
from privacy.signing import Identity, seal

SecureOrder = KeysOrder | Roster | MaskOrder | SurvivorList | UnmaskOrder
SECURE_ORDERS: Mapping[str, type[SecureOrder]] = {
    "secure-keys": KeysOrder,
    "secure-shares": Roster,
    "secure-round": MaskOrder,
    "secure-confirm": SurvivorList,
    "secure-unmask": UnmaskOrder,
}
UNMASKED = "sum.unmasked"
Protect = Callable[[bytes], bytes]


@dataclasses.dataclass
class _Session:
    """One round: the state that the next step needs, and what was answered so far."""

    setting: Setting
    state: Keyed | Shared | Ready | Masked | Confirmed | None
    answered: dict[type[SecureOrder], tuple[str, Parcel]]


class SecureRounds:
    """Sessions of this process, at most one a job. One caller at a time."""

    def __init__(
        self,
        *,
        site: str,
        identity: Identity,
        ledger: Ledger,
        keep_receipt: Callable[[Parcel], None],
        random: RandomBytes,
    ) -> None:
        """`random` gives secret bytes: `os.urandom` for anything real."""
        self._site = site
        self._identity = identity
        self._ledger = ledger
        self._keep_receipt = keep_receipt
        self._random = random
        self._sessions: dict[str, _Session] = {}

    def answer(self, order: SecureOrder, statement: bytes, plan: RoundPlan) -> Parcel:
        """Take one step. `order` has been verified, and `plan` is the one that it names.

        Raises SecureAggregationError, and RefusalError "secure-session" where the step is not due
        or this process has not begun the round, "secure-conflict" where the step was answered
        for another question.
        """
        digest = hashlib.sha256(statement).hexdigest()
        if isinstance(order, KeysOrder) and not self._begun(order):
            session = _Session(Setting.of(plan, order.round), None, {})
        else:
            session = self._session(order)
        if (before := session.answered.get(type(order))) is not None:
            # Any proof of the one confirmed list is as good as another.
            same = before[0] == digest or isinstance(order, UnmaskOrder)
            _require(same, "secure-conflict", "a step was asked for again with other content")
            return before[1]
        session.state, kind, message = self._step(session, order, plan)
        parcel = Parcel(kind, seal(message, self._identity))
        self._keep_receipt(parcel)
        session.answered[type(order)] = (digest, parcel)
        self._sessions[order.job] = session
        return parcel

    def masking(self, order: MaskOrder) -> Protect:
        """Check everything that masking needs; returns what masks packed integers, once.

        Raises SecureAggregationError or RefusalError, as `answer` does.
        """
        session = self._session(order)
        if not isinstance(session.state, Shared):
            raise _not_due()
        ready = session.state.accept(order)

        def protect(integers: bytes) -> bytes:
            _require(session.state is not None, "secure-session", "the update is masked already")
            session.state = None  # whatever happens now, these masks serve no second update
            session.state, words = ready.mask(unpack_integers(integers))
            return words

        return protect

    def _step(
        self, session: _Session, order: SecureOrder, plan: RoundPlan
    ) -> tuple[Keyed | Shared | Confirmed | None, SiteKind, SiteMessage]:
        match session.state, order:
            case None, KeysOrder():
                keyed, keys = advertise(session.setting, self._site, self._random)
                return keyed, "keys", keys
            case Keyed() as keyed, Roster():
                shared, shares = keyed.share(order, self._random)
                return shared, "shares", shares
            case Masked() as masked, SurvivorList():
                confirmed, confirmation = masked.confirm(order)
                return confirmed, "confirmed", confirmation
            case Confirmed() as confirmed, UnmaskOrder():
                unmasking = confirmed.unmask(order)
                self._note(confirmed, plan)
                return None, "unmasked", unmasking
        raise _not_due()

    def _note(self, confirmed: Confirmed, plan: RoundPlan) -> None:
        """On the ledger before the shares leave: what this site helped to unmask, and for whom."""
        listed = confirmed.confirmation
        self._ledger.append(
            UNMASKED,
            {
                "job": listed.job,
                "round": listed.round,
                "roster_sha256": listed.roster_sha256,
                "survivors": list(listed.survivors),
                "dropped": list(listed.dropped),
                "threshold": plan.quorum,
                "honest_sites": plan.honest_sites,
            },
        )

    def _begun(self, order: SecureOrder) -> bool:
        session = self._sessions.get(order.job)
        return session is not None and session.setting.round >= order.round

    def _session(self, order: SecureOrder) -> _Session:
        session = self._sessions.get(order.job)
        if session is None or not session.setting.names(order):
            raise _not_due()
        return session


def _not_due() -> RefusalError:
    return RefusalError(
        "secure-session",
        "this step of secure aggregation is not due here",
        remedy="nothing to do where this site has just restarted: it is in the next round again",
    )


def _require(holds: bool, code: str, problem: str) -> None:
    if not holds:
        raise RefusalError(
            code, problem, remedy="compare this site's ledger with the coordinator's"
        )
