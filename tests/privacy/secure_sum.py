"""A whole secure sum in one process, for tests: sites, coordinator, and where each site drops."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.parcel import RoundOrder
from privacy.plan import AdapterSpec, RoundPlan, TensorSpec
from privacy.secure_aggregation.coordinator import Gathered, add_masked, remove_masks
from privacy.secure_aggregation.messages import KeysOrder, MaskOrder, SurvivorList
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.site import Confirmed, Keyed, Masked, Ready, Shared, advertise
from privacy.signing import Identity, seal
from tests.privacy.plans import make_plan

STAGES = ("keys", "shares", "update", "confirm", "unmask")
NEVER = "never"


def identities(count: int) -> dict[str, Identity]:
    """`count` sites with keys, in order of name."""
    return {f"site-{number:02d}": Identity.generate() for number in range(count)}


def secure_plan(
    sites: Mapping[str, Identity], quorum: int, honest: int, size: int = 6
) -> RoundPlan:
    """A plan of `size` numbers for secure aggregation among `sites`."""
    spec = dataclasses.replace(make_plan().adapter, tensors=(TensorSpec("core.0", (size,)),))
    assert isinstance(spec, AdapterSpec)
    return make_plan(
        adapter=spec,
        sites=tuple(sites),
        site_keys=tuple(identity.public.raw_hex for identity in sites.values()),
        quorum=quorum,
        honest_sites=honest,
        privacy_mode="secure-aggregation",
    )


def order_of(plan: RoundPlan, round_: int = 1) -> RoundOrder:
    """A round order of `plan`; its weights are of no concern here."""
    return RoundOrder(plan.job, round_, plan.sha256, "0" * 64, "0" * 64, 0)


class SecureSum:
    """One round, stage by stage. `drops` says before which stage a site falls silent."""

    def __init__(
        self,
        plan: RoundPlan,
        sites: Mapping[str, Identity],
        integers: Mapping[str, NDArray[np.int64]],
        drops: Mapping[str, str],
        random: Callable[[int], bytes],
    ) -> None:
        self.plan, self.sites, self.integers, self.random = plan, sites, integers, random
        self.setting = Setting.of(plan, 1)
        self._drops = drops
        self.states: dict[str, Keyed | Shared | Ready | Masked | Confirmed] = {}
        self.masked: dict[str, bytes] = {}

    def alive(self, stage: str) -> list[str]:
        """Sites that answer at `stage`."""
        upto = STAGES[: STAGES.index(stage) + 1]
        return [site for site in self.sites if self._drops.get(site, NEVER) not in upto]

    def gather(self) -> Gathered:
        envelopes = {}
        for site in self.alive("keys"):
            self.states[site], keys = advertise(self.setting, site, self.random)
            envelopes[site] = seal(keys, self.sites[site])
        return Gathered.of(self.setting, envelopes)

    def share(self, gathered: Gathered) -> dict[str, MaskOrder]:
        shares = {}
        for site in self.alive("shares"):
            self.states[site], sent = self.states[site].share(gathered.roster(), self.random)
            shares[site] = gathered.shares(seal(sent, self.sites[site]), site)
        order = order_of(self.plan)
        return {site: gathered.mask_order(order, shares, site) for site in shares}

    def mask(self, orders: Mapping[str, MaskOrder]) -> None:
        for site in self.alive("update"):
            ready = self.states[site].accept(orders[site])
            self.states[site], self.masked[site] = ready.mask(self.integers[site])

    def confirm(self, gathered: Gathered, orders: Mapping[str, MaskOrder]) -> tuple:
        listed = gathered.survivor_list(orders, self.masked)
        confirmations = {}
        for site in self.alive("confirm"):
            self.states[site], sent = self.states[site].confirm(listed)
            confirmations[site] = seal(sent, self.sites[site])
            gathered.confirmation(confirmations[site], site, listed)
        return listed, confirmations

    def unmask(
        self, gathered: Gathered, listed: SurvivorList, confirmations: Mapping[str, bytes]
    ) -> NDArray[np.float64]:
        order = gathered.unmask_order(confirmations)
        unmaskings = {}
        for site in self.alive("unmask"):
            sent = self.states[site].unmask(order)
            unmaskings[site] = gathered.unmasking(seal(sent, self.sites[site]), site, listed)
        payloads = (self.masked[site] for site in listed.survivors)
        return remove_masks(add_masked(payloads, self.setting), gathered, listed, unmaskings)

    def run(self) -> NDArray[np.float64]:
        """The sum over the sites that were alive at "update"."""
        gathered = self.gather()
        orders = self.share(gathered)
        self.mask(orders)
        listed, confirmations = self.confirm(gathered, orders)
        return self.unmask(gathered, listed, confirmations)


def counted_random(seed: bytes) -> Callable[[int], bytes]:
    """Repeatable bytes for tests."""
    calls = 0

    def draw(count: int) -> bytes:
        nonlocal calls
        calls += 1
        return hashlib.shake_256(seed + calls.to_bytes(8, "big")).digest(count)

    return draw


__all__ = ["KeysOrder", "SecureSum", "counted_random", "identities", "order_of", "secure_plan"]
