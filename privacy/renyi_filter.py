"""A privacy filter: rounds whose parameters are chosen as training goes, under one fixed budget.

Composition theorems take mechanisms fixed beforehand. When σ, q or the number of rounds depend on
what was released before, ε of the rounds that happened to run is no longer a guarantee. A Rényi
filter (Feldman and Zrnic 2021, arXiv:2008.11193) is: at one order α fixed before any
data is seen, every next mechanism may depend on all releases so far, as long as the filter halts
before the divergences at α add up to more than B. Then everything together has divergence at most
B at α, and (ε, δ) follows from that.
"""

from __future__ import annotations

import math
from typing import Self

from privacy.accountant import REPLACE_ONE, MechanismEvent
from privacy.errors import AccountingError, BudgetError
from privacy.renyi import ORDERS, divergences

HALTED = "budget-filter-halted"


class RenyiFilter:
    """Admits events until the next one would pass (ε, δ), and from then on none.

    Args:
        epsilon: ε > 0 never to be passed.
        delta: δ in (0, 1) at which it holds.
        order: α, one of `privacy.renyi.ORDERS`; `expecting` chooses it.

    Raises AccountingError for values out of range, or where δ leaves nothing to spend at α.
    """

    def __init__(self, epsilon: float, delta: float, order: int) -> None:
        if not (0 < epsilon < math.inf and 0 < delta < 1 and order in ORDERS):
            raise _impossible("the filter's ε, δ or order is out of range")
        self._order = order
        self._index = ORDERS.index(order)
        self._limit = _limit(epsilon, delta, order)
        if self._limit <= 0:
            raise _impossible(f"at order {order} this δ leaves nothing of ε to spend")
        self._spent: list[float] = []
        self._halted = False
        self._adjacency: str | None = None

    @classmethod
    def expecting(cls, epsilon: float, delta: float, event: MechanismEvent) -> Self:
        """A filter at the order that admits most events like `event`.

        `event` is what is expected to run, known before any data; others may run as well.
        """
        if event.noise_multiplier == 0:
            raise _impossible("a mechanism without noise fits into no budget")
        each_A = divergences(
            event.sampling_rate, event.noise_multiplier, event.adjacency == REPLACE_ONE
        )
        admitted = [
            _limit(epsilon, delta, order) / max(each, 1e-300)
            for order, each in zip(ORDERS, each_A, strict=True)
        ]
        return cls(epsilon, delta, ORDERS[admitted.index(max(admitted))])

    @property
    def order(self) -> int:
        """α."""
        return self._order

    @property
    def halted(self) -> bool:
        """Whether an event was refused; then none will be admitted any more."""
        return self._halted

    @property
    def remaining(self) -> float:
        """Share of the budget that is left, in [0, 1]."""
        return max(0.0, 1 - math.fsum(self._spent) / self._limit)

    def spend(self, event: MechanismEvent) -> None:
        """Admit `event`, which may then run; ask before it does.

        Raises BudgetError "budget-filter-halted" and halts where it would pass the budget;
        AccountingError where its adjacency differs from the first event's.
        """
        if self._adjacency not in (None, event.adjacency):
            raise _impossible("one filter holds for one adjacency")
        cost = self._cost(event)
        if self._halted or math.fsum([*self._spent, cost]) > self._limit:
            self._halted = True
            raise BudgetError(
                "the filter halts: one more round would pass the budget",
                remedy="end the job here and release what it has",
                code=HALTED,
            )
        self._adjacency = event.adjacency
        self._spent.append(cost)

    def _cost(self, event: MechanismEvent) -> float:
        if event.noise_multiplier == 0:
            return math.inf
        replaced = event.adjacency == REPLACE_ONE
        each_A = divergences(event.sampling_rate, event.noise_multiplier, replaced)
        return event.count * float(each_A[self._index])


def _limit(epsilon: float, delta: float, order: int) -> float:
    # The largest divergence B at α with B + log(1 - 1/α) - log(δα)/(α - 1) ≤ ε (Canonne, Kamath
    # and Steinke 2020, proposition 12).
    return epsilon - math.log1p(-1 / order) + math.log(delta * order) / (order - 1)


def _impossible(what: str) -> AccountingError:
    return AccountingError(what, remedy="correct the parameters, or choose a larger ε or δ")
