"""ε of the mechanisms that ran, composed: privacy loss distributions, with Rényi's as check.

The record is the pessimistic privacy loss distribution of dp-accounting (Koskela et al. 2020,
arXiv:1906.03049; connect-the-dots discretisation, Doroshenko et al. 2022, arXiv:2207.04380), an
upper bound at any discretisation. The second opinion is Rényi accounting (Mironov et al. 2019,
arXiv:1908.10530), written independently and known to be looser, by less than half once a few
rounds are composed. Disagreement beyond that is an error in one of them, and refused.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution
from dp_accounting.rdp import RdpAccountant

from privacy.errors import AccountingError

ADJACENCY = "add_or_remove_one"
RDP_LOOSENESS = 1.5
_TOLERANCE = 1e-3  # absolute and relative, of both accountants' discretisation
_ORDERS = (*range(2, 65), *range(72, 129, 8), 192, 256, 384, 512, 768, 1024, 2048, 4096)
_REPEATS = (1, 8, 64, 512, 4096, 32_768)
_SIGMA_STEPS_PER_UNIT = 1000
_SIGMA_STEPS = range(100, 10_000 * _SIGMA_STEPS_PER_UNIT)  # σ from 0.1 to a plan's limit


@dataclass(frozen=True)
class MechanismEvent:
    """`count` runs of the Poisson-subsampled Gaussian mechanism; what ran, never its ε.

    Attributes:
        sampling_rate: q, in (0, 1].
        noise_multiplier: σ ≥ 0, noise standard deviation over the clipping norm; 0 protects nobody.
        count: number of runs, at least 1.
        adjacency: which data sets are neighbours; only "add_or_remove_one" is accounted for.

    Raises AccountingError when a field is out of range.
    """

    sampling_rate: float
    noise_multiplier: float
    count: int = 1
    adjacency: str = ADJACENCY

    def __post_init__(self) -> None:
        """Check every range."""
        _check(0 < self.sampling_rate <= 1, "the sampling rate must be in (0, 1]")
        _check(0 <= self.noise_multiplier < math.inf, "the noise multiplier must be 0 or more")
        _check(self.count >= 1, "a mechanism event counts at least one run")
        _check(self.adjacency == ADJACENCY, f"only {ADJACENCY} adjacency is accounted for")


_Merged = tuple[MechanismEvent, ...]


def epsilon(events: Sequence[MechanismEvent], delta: float) -> float:
    """ε at `delta` of all `events` composed, in any order; ∞ if one of them adds no noise.

    Raises AccountingError for δ outside (0, 1) and when the accountants disagree.
    """
    _check(0 < delta < 1, "δ must be in (0, 1)")
    merged = _merge(events)
    if not merged:
        return 0.0
    if any(event.noise_multiplier == 0 for event in merged):
        return math.inf
    return _checked_epsilon(merged, delta)


def epsilon_sec(events: Sequence[MechanismEvent], delta: float, honest_sites: int) -> float:
    """ε when only sums over sites are seen and `honest_sites` of them add their noise: √h·σ.

    Valid only under secure aggregation of one noisy sum a round. Raises AccountingError.
    """
    _check(honest_sites >= 1, "at least one honest site is needed")
    gain = math.sqrt(honest_sites)
    return epsilon(
        [replace(event, noise_multiplier=event.noise_multiplier * gain) for event in events], delta
    )


def noise_multiplier_for(epsilon: float, delta: float, sampling_rate: float, rounds: int) -> float:
    """Smallest σ, in thousandths and at least 0.1, whose ε over `rounds` rounds is ≤ `epsilon`.

    Raises AccountingError when no σ below 10,000 reaches it.
    """
    _check(epsilon > 0, "ε must be positive")
    _check(0 < delta < 1, "δ must be in (0, 1)")

    def event(steps: int) -> MechanismEvent:
        return MechanismEvent(sampling_rate, steps / _SIGMA_STEPS_PER_UNIT, rounds)

    found = bisect_left(
        _SIGMA_STEPS, True, key=lambda steps: _pld_epsilon((event(steps),), delta) <= epsilon
    )
    _check(found < len(_SIGMA_STEPS), f"no noise multiplier reaches ε = {epsilon}")
    chosen = event(_SIGMA_STEPS[found])
    _checked_epsilon((chosen,), delta)
    return chosen.noise_multiplier


def accountant_versions() -> dict[str, str]:
    """Versions of what computed ε, for the ledger."""
    return {"dp-accounting": version("dp-accounting")}


def _merge(events: Sequence[MechanismEvent]) -> _Merged:
    counts: Counter[tuple[float, float]] = Counter()
    for event in events:
        counts[event.sampling_rate, event.noise_multiplier] += event.count
    return tuple(MechanismEvent(q, sigma, n) for (q, sigma), n in sorted(counts.items()))


@lru_cache(maxsize=4096)
def _checked_epsilon(events: _Merged, delta: float) -> float:
    pld, rdp = _pld_epsilon(events, delta), _rdp_epsilon(events, delta)
    if not _within(pld, rdp, 1.0):
        raise _disagreement(pld, rdp)
    if not _within(rdp, pld, RDP_LOOSENESS):
        # For few rounds and tiny or huge ε Rényi's conversion is far looser than half. The same
        # mechanisms composed more or fewer times must then agree.
        once = tuple(replace(event, count=1) for event in events)
        if not _agree_when_repeated(once, delta):
            raise _disagreement(pld, rdp)
    return pld


@lru_cache(maxsize=1024)
def _agree_when_repeated(once: _Merged, delta: float) -> bool:
    for repeats in _REPEATS:
        events = tuple(replace(event, count=repeats) for event in once)
        pld, rdp = _pld_epsilon(events, delta), _rdp_epsilon(events, delta)
        if pld > 0 and pld <= rdp <= RDP_LOOSENESS * pld:
            return True
    return False


def _within(small: float, large: float, factor: float) -> bool:
    return small <= factor * large * (1 + _TOLERANCE) + _TOLERANCE


@lru_cache(maxsize=1024)
def _pld_epsilon(events: _Merged, delta: float) -> float:
    interval = _discretisation(events)
    whole, *others = (
        _pld(event.sampling_rate, event.noise_multiplier, interval).self_compose(event.count)
        for event in events
    )
    for other in others:
        whole = whole.compose(other)
    return float(whole.get_epsilon_for_delta(delta))


@lru_cache(maxsize=64)
def _pld(sampling_rate: float, noise_multiplier: float, interval: float) -> Any:
    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sampling_rate,
        value_discretization_interval=interval,
        pessimistic_estimate=True,
    )


def _discretisation(events: _Merged) -> float:
    # A thirtieth of the typical spread of one round's privacy loss costs 1e-4 of ε. A power of
    # two, so that a job's rounds all reuse one distribution.
    rounds = sum(event.count for event in events)
    variance = sum(event.count * _loss_spread(event) ** 2 for event in events) / rounds
    fine = min(max(math.sqrt(variance) / 30, 1e-7), 1e-2)
    return float(2.0 ** math.floor(math.log2(fine)))


def _loss_spread(event: MechanismEvent) -> float:
    # Standard deviation of the loss: q·√χ² to first order in q, and 1/σ without subsampling.
    precision = event.noise_multiplier**-2
    unsampled = math.sqrt(precision)
    if precision > 100:
        return unsampled
    return min(event.sampling_rate * math.sqrt(math.expm1(precision)), unsampled)


@lru_cache(maxsize=1024)
def _rdp_epsilon(events: _Merged, delta: float) -> float:
    accountant = RdpAccountant(_ORDERS)
    for event in events:
        gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
        sampled = dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian)
        accountant.compose(sampled, event.count)
    return float(accountant.get_epsilon(delta))


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise AccountingError(what, remedy="correct the plan's parameters and issue it again")


def _disagreement(pld: float, rdp: float) -> AccountingError:
    return AccountingError(
        f"the accountants disagree: ε is {pld:.4g} by loss distribution and {rdp:.4g} by Rényi",
        remedy="do not train with this plan; report its sampling rate, noise multiplier and rounds",
    )
