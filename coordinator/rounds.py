"""The state machine of one round, pure: no clock, no disk, no network.

    open ──orders sent──▶ collecting ──▶ aggregating ──checkpointed──▶ released
      │                       │
      └────────▶ abandoned ◀──┘   (quorum out of reach, or deadline passed below quorum)

Under secure aggregation "open" also spans the exchange of keys and shares, and "aggregating" may
end in "abandoned" when too few survivors are left to unmask the sum (`coordinator.secure_round`).

A round collects until every expected site has answered or the deadline passes: reaching the
quorum early does not close it, so that a slow site is never silently dropped. Sites that have not
answered when it closes are its stragglers and are named. Whoever runs the machine reads the clock
and stores the state; `advance` only decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Literal

from coordinator.errors import RoundError

RoundStatus = Literal["open", "collecting", "aggregating", "released", "abandoned"]
Outcome = Literal["wait", "enough", "too-few"]
OK = "ok"
CLOSED: frozenset[RoundStatus] = frozenset({"released", "abandoned"})


@dataclasses.dataclass(frozen=True)
class OrdersSent:
    """At least one site has been sent the round's order."""


@dataclasses.dataclass(frozen=True)
class UpdateAdmitted:
    """`site`'s update passed every admission check and is durable."""

    site: str


@dataclasses.dataclass(frozen=True)
class SiteRefused:
    """`site` will give nothing this round: it refused, was refused, or was revoked."""

    site: str
    code: str


@dataclasses.dataclass(frozen=True)
class ClockRead:
    """The time is `at_s` (seconds since the epoch)."""

    at_s: float


@dataclasses.dataclass(frozen=True)
class Aggregated:
    """The aggregate and the optimiser's step are in the same transaction as this event."""


@dataclasses.dataclass(frozen=True)
class SumLost:
    """Too few sites are left to unmask the round's secure sum."""


@dataclasses.dataclass(frozen=True)
class Reopened:
    """An operator gives an abandoned round another chance until `deadline_at_s`.

    `updates_closed`: sites may have confirmed who survived, so that no update can be added and
    only the secure sum is tried again.
    """

    deadline_at_s: float
    updates_closed: bool = False


Event = OrdersSent | UpdateAdmitted | SiteRefused | ClockRead | Aggregated | SumLost | Reopened


@dataclasses.dataclass(frozen=True)
class RoundState:
    """A round as it stands.

    Attributes:
        number: 1-based round of the job.
        sites: sites expected to take part.
        quorum: fewest admitted updates that make a round.
        deadline_at_s: seconds since the epoch at which collecting ends.
        admitted: sites whose update is in.
        refused: (site, code) of those that will give nothing.
        attempt: 1, and one more each time an abandoned round is reopened.
    """

    number: int
    sites: frozenset[str]
    quorum: int
    deadline_at_s: float
    status: RoundStatus = "open"
    admitted: frozenset[str] = frozenset()
    refused: tuple[tuple[str, str], ...] = ()
    attempt: int = 1

    @property
    def missing(self) -> tuple[str, ...]:
        """Sites that have not answered, in name order: the stragglers once the round closes."""
        return tuple(sorted(self.sites - self.admitted - {site for site, _ in self.refused}))


def weigh(expected: int, given: int, refused: int, quorum: int, late: bool) -> Outcome:
    """Whether answers suffice: all in, or the deadline past, with at least `quorum` given."""
    if expected - refused < quorum or (late and given < quorum):
        return "too-few"
    return "enough" if late or given + refused == expected else "wait"


def weigh_codes(codes: Collection[str | None], quorum: int, late: bool) -> Outcome:
    """`weigh` for answers given as "ok", a refusal's code, or None while there is none."""
    given = sum(code == OK for code in codes)
    refused = sum(code not in (None, OK) for code in codes)
    return weigh(len(codes), given, refused, quorum, late)


def advance(state: RoundState, event: Event) -> RoundState:
    """The state after `event`. Raises RoundError where the event cannot happen.

    Reading the clock is allowed in every state and changes only a round that still waits.
    """
    if isinstance(event, ClockRead):
        return _weighed(state, late=event.at_s >= state.deadline_at_s)
    match state.status, event:
        case (("open" | "collecting"), OrdersSent()):
            return dataclasses.replace(state, status="collecting")
        case "collecting", UpdateAdmitted(site):
            _expect(state, site)
            return _weighed(dataclasses.replace(state, admitted=state.admitted | {site}))
        case (("open" | "collecting"), SiteRefused(site, code)):
            _expect(state, site)
            return _weighed(dataclasses.replace(state, refused=(*state.refused, (site, code))))
        case "aggregating", (Aggregated() | SumLost()):
            done = isinstance(event, Aggregated)
            return dataclasses.replace(state, status="released" if done else "abandoned")
        case "abandoned", Reopened():
            return _reopened(state, event)
    raise RoundError(
        f"round {state.number} is {state.status} and cannot take {type(event).__name__}",
        remedy="look at the job's status; a closed round takes nothing more",
        code="round-closed" if state.status in CLOSED else "round-event-refused",
    )


def _reopened(state: RoundState, event: Reopened) -> RoundState:
    return dataclasses.replace(
        state,
        status="aggregating" if event.updates_closed else "open",
        refused=state.refused if event.updates_closed else (),
        deadline_at_s=event.deadline_at_s,
        attempt=state.attempt + 1,
    )


def _weighed(state: RoundState, late: bool = False) -> RoundState:
    if state.status not in ("open", "collecting"):
        return state
    match weigh(len(state.sites), len(state.admitted), len(state.refused), state.quorum, late):
        case "too-few":
            return dataclasses.replace(state, status="abandoned")
        case "enough":
            return dataclasses.replace(state, status="aggregating")
        case "wait":
            return state


def _expect(state: RoundState, site: str) -> None:
    if site not in state.missing:
        raise RoundError(
            f"round {state.number} does not wait for this site",
            remedy="each expected site answers a round once",
            code="site-not-awaited",
        )
