"""The coordinator's part of a secure sum: carries what sites signed, and adds.

It holds masked updates and, in the end, their sum. `remove_masks` takes masks from the sum alone:
no function here sees one site's update without its masks, and no secret of the protocol allows it.

Shape legend: D = trainable numbers.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from privacy.parcel import RoundOrder
from privacy.secure_aggregation.agreement import (
    SEED_BYTES,
    Words,
    commitment,
    mask_key,
    pair_mask,
    public_hex,
    self_mask,
)
from privacy.secure_aggregation.errors import require
from privacy.secure_aggregation.messages import (
    Confirmation,
    MaskOrder,
    Roster,
    SiteKeys,
    SiteShares,
    SurvivorList,
    Unmasking,
    UnmaskOrder,
    roster_sha256,
)
from privacy.secure_aggregation.roster import open_keys, open_signed, require_survivors
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.sharing import combine

Envelopes = Mapping[str, bytes]


@dataclasses.dataclass(frozen=True)
class Gathered:
    """Who takes part: the roster as sites signed it, by site in order of name."""

    setting: Setting
    keys: Mapping[str, SiteKeys]
    envelopes: Envelopes

    @classmethod
    def of(cls, setting: Setting, envelopes: Envelopes) -> Gathered:
        """From the envelope of each site's keys. Raises SecureAggregationError."""
        ordered = {site: envelopes[site] for site in sorted(envelopes)}
        keys = {site: open_keys(data, setting, site) for site, data in ordered.items()}
        return cls(setting, keys, ordered)

    @property
    def sha256(self) -> str:
        """Name of the roster."""
        return roster_sha256(self.keys.values())

    def roster(self) -> Roster:
        """What every site is sent of it."""
        entries = tuple(data.decode("ascii") for data in self.envelopes.values())
        return Roster(*self._named, entries)

    def shares(self, envelope: bytes, site: str) -> SiteShares:
        """A site's sealed shares. Raises SecureAggregationError "secure-signature", "-shares"."""
        shares = open_signed(SiteShares, envelope, self.setting, site)
        require(shares.roster_sha256 == self.sha256, "secure-shares", "of another roster")
        require(len(shares.sealed) == len(self.keys), "secure-shares", "not one for each site")
        return shares

    def mask_order(
        self, order: RoundOrder, shares: Mapping[str, SiteShares], receiver: str
    ) -> MaskOrder:
        """What `receiver` needs to mask among the sites of `shares`."""
        place = list(self.keys).index(receiver)
        sites = tuple(sorted(shares))
        return MaskOrder(
            order, self.sha256, sites, tuple(shares[site].sealed[place] for site in sites)
        )

    def survivor_list(self, sharers: Iterable[str], survivors: Iterable[str]) -> SurvivorList:
        """Those of `sharers` whose update is in, and those whose is not."""
        alive = frozenset(survivors)
        return SurvivorList(
            *self._named,
            self.sha256,
            tuple(sorted(alive)),
            tuple(sorted(frozenset(sharers) - alive)),
        )

    def confirmation(self, envelope: bytes, site: str, listed: SurvivorList) -> Confirmation:
        """A site's confirmation of `listed`. Raises SecureAggregationError."""
        confirmation = open_signed(Confirmation, envelope, self.setting, site)
        same = dataclasses.asdict(confirmation) == dataclasses.asdict(listed) | {"site": site}
        require(same, "secure-confirmations", "a site confirmed another list")
        return confirmation

    def unmask_order(self, confirmations: Envelopes) -> UnmaskOrder:
        """Proof for each site that a threshold confirmed the same list."""
        ordered = [confirmations[site].decode("ascii") for site in sorted(confirmations)]
        return UnmaskOrder(*self._named, tuple(ordered))

    def unmasking(self, envelope: bytes, site: str, listed: SurvivorList) -> Unmasking:
        """A site's shares for `listed`, of the right number and size.

        Raises SecureAggregationError "secure-signature" or "secure-shares".
        """
        shares = open_signed(Unmasking, envelope, self.setting, site)
        require(shares.roster_sha256 == self.sha256, "secure-shares", "of another roster")
        counts = (len(shares.survivor_shares), len(shares.dropped_shares))
        expected = (len(listed.survivors), len(listed.dropped))
        require(counts == expected, "secure-shares", "not one share for each site")
        for share in (*shares.survivor_shares, *shares.dropped_shares):
            require(_is_share(share), "secure-shares", "a share is not 16 bytes of hex")
        return shares

    @property
    def _named(self) -> tuple[str, int, str]:
        return self.setting.job, self.setting.round, self.setting.plan_sha256


def add_masked(payloads: Iterable[bytes], setting: Setting) -> Words:
    """Sum mod 2^w [D] of masked updates, one in memory at a time."""
    grid = setting.fixed_point
    sum_D = grid.to_words(np.zeros(setting.size, np.int64))
    for payload in payloads:
        sum_D += grid.read(payload)
    return sum_D


def remove_masks(
    sum_D: Words,
    gathered: Gathered,
    listed: SurvivorList,
    unmaskings: Mapping[str, Unmasking],
) -> NDArray[np.float64]:
    """The sum of the survivors' updates, from the sum of their masked ones.

    Raises SecureAggregationError: "secure-survivors" for a list of too few, "secure-sum" where
    fewer than a threshold of right shares came.
    """
    setting = gathered.setting
    sharers = (*listed.survivors, *listed.dropped)
    require_survivors(listed, setting, sharers)
    shape = {"size": setting.size, "word_bits": setting.fixed_point.word_bits}
    for place, site in enumerate(listed.survivors):
        shares = {who: one.survivor_shares[place] for who, one in unmaskings.items()}
        published = gathered.keys[site].self_seed_sha256
        seed = _recover(shares, gathered, commitment, published)
        sum_D = sum_D - self_mask(seed, setting.session, **shape)
    for place, site in enumerate(listed.dropped):
        shares = {who: one.dropped_shares[place] for who, one in unmaskings.items()}
        published = gathered.keys[site].mask_public
        seed = _recover(shares, gathered, functools.partial(_public_of, setting), published)
        private = mask_key(seed, setting.session)
        for survivor in listed.survivors:
            public, pair = gathered.keys[survivor].mask_public, (site, survivor)
            mask_D = pair_mask(private, public, setting.session, pair, **shape)
            sum_D = sum_D - mask_D if survivor < site else sum_D + mask_D
    return setting.fixed_point.from_words(sum_D)


def _recover(
    shares: Mapping[str, str], gathered: Gathered, publish: Callable[[bytes], str], published: str
) -> bytes:
    numbers = {site: number for number, site in enumerate(gathered.keys, 1)}
    by_number = {numbers[site]: bytes.fromhex(share) for site, share in shares.items()}
    threshold = gathered.setting.threshold
    return combine(by_number, threshold, lambda seed: publish(seed) == published)


def _public_of(setting: Setting, mask_seed: bytes) -> str:
    return public_hex(mask_key(mask_seed, setting.session))


def _is_share(share: str) -> bool:
    try:
        return len(bytes.fromhex(share)) == SEED_BYTES and share == share.lower()
    except ValueError:
        return False
