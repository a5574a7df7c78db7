"""A fleet link over the sites' sockets, on which parcels are lost, doubled and late on order."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from coordinator.link import Delivery
from privacy.parcel import Parcel, RoundOrder
from privacy.signing import open_as
from tests.coordinator.fakes import FakeSite
from tests.faults import wire
from tests.faults.hostile import HOSTILE

if TYPE_CHECKING:
    from tests.faults.federation import Place, Script

WireFault = Literal["order lost", "answer lost", "order doubled", "answer too late"]
WIRE_FAULTS: tuple[WireFault, ...] = get_args(WireFault)


class SocketLink:
    """FleetLink that asks each site over its socket, and plays the adversary itself.

    One reply comes with each poll, in the order in which sites were asked. Each fault of the wire
    happens once, whatever is killed meanwhile, but for an answer that is too late: it stays so.
    """

    def __init__(
        self,
        sockets: Path,
        names: Collection[str],
        adversary: FakeSite,
        script: Script,
        place: Place,
    ) -> None:
        self._sockets = sockets
        self._names = frozenset(names)
        self._adversary = adversary
        self._script = script
        self._place = place
        self._trusted = (place.identity.public,)
        self._replies: deque[Delivery] = deque()
        self._numbers = itertools.count(1)

    def online(self) -> frozenset[str]:
        """All of them: who is down is found out by asking."""
        return self._names | {self._adversary.name}

    def send(self, site: str, parcel: Parcel) -> str:
        """Ask and wait for the answer; the message's id."""
        message = f"m{next(self._numbers)}"
        if site == self._adversary.name:
            self._replies.append(Delivery(message, site, self._hostile_answer(parcel)))
            return message
        try:
            reply = self._exchange(site, parcel)
        except (EOFError, OSError):
            self._replies.append(Delivery(message, site, error_code="site-gone"))
        else:
            if reply is not None:
                self._replies.append(Delivery(message, site, reply))
        return message

    def poll(self, message_ids: Collection[str]) -> list[Delivery]:
        """The next reply, if it is one of those asked for."""
        while self._replies:
            reply = self._replies.popleft()
            if reply.message_id in message_ids:
                return [reply]
        return []

    def close(self) -> None:
        """Nothing is held."""

    def _exchange(self, site: str, parcel: Parcel) -> Parcel | None:
        """The site's answer, None for one that does not come, OSError for one that broke off."""
        number = self._number(parcel)
        if site in self._script.absent.get(number, ()):
            return None
        fault = self._script.wire.get((number, site))
        if fault == "order lost" and self._once(number, site):
            raise ConnectionResetError
        reply = wire.ask(self._sockets / site, parcel)
        if fault == "answer lost" and self._once(number, site):
            raise ConnectionResetError
        if fault == "order doubled" and self._once(number, site):
            assert wire.ask(self._sockets / site, parcel) == reply
        if fault == "answer too late":
            self._once(number, site)
            return None
        return reply

    def _hostile_answer(self, parcel: Parcel) -> Parcel:
        site, number = self._adversary, self._number(parcel)
        if number == 0:
            return site(parcel)
        order = open_as(RoundOrder, parcel.statement, self._trusted)
        name = self._script.hostile.get(number)
        if name is None:
            return site.answer("refused", order.job, order.payload_sha256, "training-failed")
        self._once(number, site.name)
        return HOSTILE[name].make(site, order)

    def _number(self, parcel: Parcel) -> int:
        if parcel.kind != "round":
            return 0
        return open_as(RoundOrder, parcel.statement, self._trusted).round

    def _once(self, number: int, site: str) -> bool:
        """Whether this is the first time; from now on it is not."""
        fired = self._place.fired(f"{number:02d}-{site}")
        if fired.exists():
            return False
        fired.touch()
        return True
