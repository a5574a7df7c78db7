"""ε of the mechanisms that ran, composed: privacy loss distributions, with Rényi's as check.

The record is the pessimistic privacy loss distribution (`privacy.loss_distribution`), an upper
bound on any grid. The second opinion is Rényi accounting (`privacy.renyi`), computed apart from it
and known to be looser, by less than half once a few rounds are composed. Disagreement beyond that
is an error in one of them, and refused.

Adjacency. Data sets are neighbours when one subject is added or removed, or when one is replaced
by another. The mechanism is the same; what is said of it differs, and replace-one is the stronger
statement: it has add-or-remove-one in it, as a subject may be replaced by one whose gradient is
zero. A composition with any replace-one event is therefore accounted as replace-one throughout.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np

from privacy.errors import AccountingError
from privacy.loss_distribution import Composed, distribution, interval_of
from privacy.renyi import ORDERS, divergences, epsilon_of

ADD_OR_REMOVE_ONE = "add_or_remove_one"
REPLACE_ONE = "replace_one"
ADJACENCIES = (ADD_OR_REMOVE_ONE, REPLACE_ONE)
RDP_LOOSENESS = 1.5
_TOLERANCE = 1e-3  # absolute and relative, of both accountants' discretisation
_REPEATS = (1, 8, 64, 512, 4096, 32_768)
_INTERPOLATED_PROBES = 8  # then halving, which always ends
_SIGMA_STEPS_PER_UNIT = 1000
_SIGMA_STEPS = range(100, 10_000 * _SIGMA_STEPS_PER_UNIT)  # σ from 0.1 to a plan's limit


@dataclass(frozen=True)
class MechanismEvent:
    """`count` runs of the Poisson-subsampled Gaussian mechanism; what ran, never its ε.

    Attributes:
        sampling_rate: q, in (0, 1].
        noise_multiplier: σ ≥ 0, noise standard deviation over the clipping norm; 0 protects nobody.
        count: number of runs, at least 1.
        adjacency: which data sets are neighbours, one of ADJACENCIES.

    Raises AccountingError when a field is out of range.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int = 1
    adjacency: str = ADD_OR_REMOVE_ONE

    def __post_init__(self) -> None:
        """Check every range."""
        _check(0 < self.sampling_rate <= 1, "the sampling rate must be in (0, 1]")
        _check(0 <= self.noise_multiplier < math.inf, "the noise multiplier must be 0 or more")
        _check(self.count >= 1, "a mechanism event counts at least one run")
        _check(self.adjacency in ADJACENCIES, f"adjacency must be one of {', '.join(ADJACENCIES)}")

    def summed(self, honest_sites: int) -> MechanismEvent:
        """The same where only a secure sum is seen, in which h honest sites' noises add: √h·σ.

        Raises AccountingError for fewer than one honest site.
        """
        _check(honest_sites >= 1, "at least one honest site is needed")
        return replace(self, noise_multiplier=self.noise_multiplier * math.sqrt(honest_sites))


class Composition:
    """Events composed as they come: one more costs one convolution, however many came before.

    In another order, or added one by one where a count would do, the same events give the same ε
    to about nine digits: each convolution rounds, and moves at most 1e-15 of a tail to infinity.
    """

    def __init__(self, events: Iterable[MechanismEvent] = ()) -> None:
        self._counts: Counter[tuple[float, float]] = Counter()
        self._replace_one = False
        self._unprotected = False
        self._composed = Composed()
        self._divergences_A = np.zeros(len(ORDERS))
        for event in events:
            self.add(event)

    def add(self, event: MechanismEvent) -> None:
        """Compose with `event`."""
        mechanism = (event.sampling_rate, event.noise_multiplier)
        self._counts[mechanism] += event.count
        if event.noise_multiplier == 0:
            self._unprotected = True
        elif event.adjacency == REPLACE_ONE and not self._replace_one:
            self._start_again_as_replace_one()
        else:
            self._compose(*mechanism, event.count)

    def epsilon(self, delta: float) -> float:
        """ε at `delta` of everything added so far; ∞ if any of it adds no noise.

        Raises AccountingError for δ outside (0, 1) and when the accountants disagree.
        """
        _check(0 < delta < 1, "δ must be in (0, 1)")
        if not self._counts:
            return 0.0
        if self._unprotected:
            return math.inf
        pld, rdp = self._composed.epsilon(delta), epsilon_of(self._divergences_A, delta)
        # For few rounds and tiny or huge ε Rényi's conversion is far looser than half. Each of the
        # mechanisms composed more or fewer times must then agree.
        if not _agree(pld, rdp) and not (
            _within(pld, rdp, 1.0)
            and all(_agrees_when_repeated(*one, self._replace_one, delta) for one in self._counts)
        ):
            raise _disagreement(pld, rdp)
        return pld

    def _compose(self, sampling_rate: float, noise_multiplier: float, count: int) -> None:
        one = (sampling_rate, noise_multiplier)
        interval = interval_of(*one, replace_one=self._replace_one)
        single = distribution(*one, interval, replace_one=self._replace_one)
        self._composed.add(single, interval, count)
        self._divergences_A += count * divergences(*one, self._replace_one)

    def _start_again_as_replace_one(self) -> None:
        self._replace_one = True
        self._composed = Composed()
        self._divergences_A = np.zeros(len(ORDERS))
        for (sampling_rate, noise_multiplier), count in sorted(self._counts.items()):
            if noise_multiplier > 0:
                self._compose(sampling_rate, noise_multiplier, count)


def epsilon(events: Sequence[MechanismEvent], delta: float) -> float:
    """ε at `delta` of all `events` composed, in any order; ∞ if one of them adds no noise.

    Raises AccountingError for δ outside (0, 1) and when the accountants disagree.
    """
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.sampling_rate, event.noise_multiplier] += event.count
    replaced = any(event.adjacency == REPLACE_ONE for event in events)
    adjacency = REPLACE_ONE if replaced else ADD_OR_REMOVE_ONE
    merged = (MechanismEvent(*one, count, adjacency) for one, count in sorted(counts.items()))
    return _epsilon(tuple(merged), delta)


def epsilon_sec(events: Sequence[MechanismEvent], delta: float, honest_sites: int) -> float:
    """ε when only sums over sites are seen and `honest_sites` of them add their noise: √h·σ.

    Valid only under secure aggregation of one noisy sum a round. Raises AccountingError.
    """
    _check(honest_sites >= 1, "at least one honest site is needed")
    return epsilon([event.summed(honest_sites) for event in events], delta)


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    rounds: int,
    adjacency: str = ADD_OR_REMOVE_ONE,
) -> float:
    """Smallest σ, in thousandths and at least 0.1, whose ε over `rounds` rounds is ≤ `epsilon`.

    Raises AccountingError when no σ below 10,000 reaches it.
    """
    _check(epsilon > 0, "ε must be positive")
    _check(0 < delta < 1, "δ must be in (0, 1)")
    replace_one = MechanismEvent(sampling_rate, 1.0, rounds, adjacency).adjacency == REPLACE_ONE

    def pld(step: int) -> float:
        return _pld_epsilon(sampling_rate, _sigma(step), replace_one, rounds, delta)

    def rdp(step: int) -> float:
        return _rdp_epsilon(sampling_rate, _sigma(step), replace_one, rounds, delta)

    # Rényi's σ, quickly found, is a little too large: the search for the smallest starts there.
    high = bisect_left(_SIGMA_STEPS, True, key=lambda step: rdp(step) <= epsilon)
    sigma = _sigma(_smallest_within(epsilon, pld, _SIGMA_STEPS[min(high, len(_SIGMA_STEPS) - 1)]))
    _epsilon((MechanismEvent(sampling_rate, sigma, rounds, adjacency),), delta)  # or refused
    return sigma


def accountant_versions() -> dict[str, str]:
    """Versions of what computed ε, for the ledger."""
    return {"dp-accounting": version("dp-accounting")}


def _sigma(step: int) -> float:
    return step / _SIGMA_STEPS_PER_UNIT


def _smallest_within(target: float, epsilon_at: Callable[[int], float], start: int) -> int:
    """Smallest of _SIGMA_STEPS with ε ≤ `target`, by interpolation from `start`."""
    high, at_high = start, epsilon_at(start)
    _check(at_high <= target, f"no noise multiplier reaches ε = {target}")
    low, at_low = high, at_high
    while at_low <= target:
        high, at_high = low, at_low
        if high == _SIGMA_STEPS[0]:
            return high
        low = max(_SIGMA_STEPS[0], high - max(1, high // 8))
        at_low = epsilon_at(low)
    probes = 0
    while high - low > 1:
        probes += 1
        share = 0.5
        if probes <= _INTERPOLATED_PROBES and 0 < at_high < at_low < math.inf:
            share = math.log(at_low / target) / math.log(at_low / at_high)
        middle = min(max(low + 1, low + round(share * (high - low))), high - 1)
        found = epsilon_at(middle)
        if found <= target:
            high, at_high = middle, found
        else:
            low, at_low = middle, found
    return high


@lru_cache(maxsize=4096)
def _epsilon(events: tuple[MechanismEvent, ...], delta: float) -> float:
    return Composition(events).epsilon(delta)


@lru_cache(maxsize=1024)
def _agrees_when_repeated(
    sampling_rate: float, noise_multiplier: float, replace_one: bool, delta: float
) -> bool:
    one = (sampling_rate, noise_multiplier, replace_one)
    for repeats in _REPEATS:
        pld, rdp = _pld_epsilon(*one, repeats, delta), _rdp_epsilon(*one, repeats, delta)
        if pld > 0 and pld <= rdp <= RDP_LOOSENESS * pld:
            return True
    return False


def _pld_epsilon(q: float, sigma: float, replace_one: bool, count: int, delta: float) -> float:
    interval = interval_of(q, sigma, replace_one=replace_one)
    composed = Composed()
    composed.add(distribution(q, sigma, interval, replace_one=replace_one), interval, count)
    return composed.epsilon(delta)


def _rdp_epsilon(q: float, sigma: float, replace_one: bool, count: int, delta: float) -> float:
    return epsilon_of(count * divergences(q, sigma, replace_one), delta)


def _agree(pld: float, rdp: float) -> bool:
    return _within(pld, rdp, 1.0) and _within(rdp, pld, RDP_LOOSENESS)


def _within(small: float, large: float, factor: float) -> bool:
    return small <= factor * large * (1 + _TOLERANCE) + _TOLERANCE


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AccountingError(what, remedy="correct the plan's parameters and issue it again")


def _disagreement(pld: float, rdp: float) -> AccountingError:
    return AccountingError(
        f"the accountants disagree: ε is {pld:.4g} by loss distribution and {rdp:.4g} by Rényi",
        remedy="do not train with this plan; report its sampling rate, noise multiplier and rounds",
    )
