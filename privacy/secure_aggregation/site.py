"""A site's part of a secure sum: one state after the other, each able to do the next step only.

    advertise() ─▶ Keyed ─share─▶ Shared ─accept─▶ Ready ─mask─▶ Masked ─confirm─▶ Confirmed ─unmask

A state is used once: whoever holds it goes on to the one that the step returns, and repeats an
answer from the bytes it kept. Because a step exists only on its own state, one session masks one
update, confirms one list of survivors, and unmasks that list only. Secrets are in the states and
nowhere else; they die with the process, and the site has then dropped out of the round.

Shape legend: D = trainable numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from numpy.typing import NDArray

from privacy.errors import AuricleError
from privacy.secure_aggregation.agreement import (
    KEY_BYTES,
    SEED_BYTES,
    RandomBytes,
    commitment,
    mask_key,
    open_from,
    pair_mask,
    public_hex,
    seal_to,
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
from privacy.secure_aggregation.roster import open_roster, open_signed, require_survivors
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.sharing import split


@dataclasses.dataclass(frozen=True)
class _Secrets:
    """What a site knows alone, for one round: never shown, never stored."""

    share_private: X25519PrivateKey = dataclasses.field(repr=False)
    mask_seed: bytes = dataclasses.field(repr=False)
    self_seed: bytes = dataclasses.field(repr=False)


def advertise(setting: Setting, site: str, random: RandomBytes) -> tuple[Keyed, SiteKeys]:
    """Fresh keys for a round. Raises SecureAggregationError for a site that the plan leaves out."""
    require(site in setting.identities, "secure-roster", "the plan does not name this site")
    secrets = _Secrets(
        share_private=X25519PrivateKey.from_private_bytes(random(KEY_BYTES)),
        mask_seed=random(SEED_BYTES),
        self_seed=random(SEED_BYTES),
    )
    keys = SiteKeys(
        job=setting.job,
        round=setting.round,
        plan_sha256=setting.plan_sha256,
        site=site,
        share_public=public_hex(secrets.share_private),
        mask_public=public_hex(mask_key(secrets.mask_seed, setting.session)),
        self_seed_sha256=commitment(secrets.self_seed),
    )
    return Keyed(setting, site, secrets, keys), keys


@dataclasses.dataclass(frozen=True)
class Keyed:
    """Keys are made; the roster is awaited."""

    setting: Setting
    site: str
    secrets: _Secrets
    keys: SiteKeys

    def share(self, roster: Roster, random: RandomBytes) -> tuple[Shared, SiteShares]:
        """Share both seeds out among the roster, each share sealed to its receiver.

        Raises SecureAggregationError: "secure-signature" for a key that its site did not sign,
        "secure-roster" for one without this site's own keys or below the threshold.
        """
        peers = open_roster(roster, self.setting)
        mine = peers.get(self.site) == self.keys
        require(mine, "secure-roster", "the roster does not have this site's keys")
        name = roster_sha256(peers.values())
        count = len(peers)
        pairs = zip(
            split(self.secrets.mask_seed, self.setting.threshold, count),
            split(self.secrets.self_seed, self.setting.threshold, count),
            strict=True,
        )
        shares = {site: mask + own for site, (mask, own) in zip(peers, pairs, strict=True)}
        sealed = tuple(
            ""
            if peer == self.site
            else seal_to(
                self.secrets.share_private,
                peers[peer].share_public,
                shares[peer],
                self.setting.session,
                name,
                sender=self.site,
                receiver=peer,
                random=random,
            )
            for peer in peers
        )
        shared = Shared(self.setting, self.site, self.secrets, peers, name, shares[self.site])
        named = (self.setting.job, self.setting.round, self.setting.plan_sha256)
        return shared, SiteShares(*named, name, self.site, sealed)


@dataclasses.dataclass(frozen=True)
class Shared:
    """Shares are out; those of the others are awaited."""

    setting: Setting
    site: str
    secrets: _Secrets
    peers: Mapping[str, SiteKeys]
    roster: str
    own_share: bytes = dataclasses.field(repr=False)

    def accept(self, order: MaskOrder) -> Ready:
        """Open what the others sealed; nothing is masked before all of it opened.

        Raises SecureAggregationError: "secure-roster" for other sites than the roster's, or fewer
        than the threshold, and "secure-shares" for a share that does not open.
        """
        here = self.setting.names(order) and order.roster_sha256 == self.roster
        require(here, "secure-roster", "the order is of another round, plan or roster")
        sites = list(order.sites)
        known = sites == sorted(set(sites)) and set(sites) <= self.peers.keys()
        require(known and self.site in sites, "secure-roster", "its sites are not the roster's")
        enough = len(sites) >= self.setting.threshold
        require(enough, "secure-roster", "fewer sites than the threshold shared their seeds")
        require(len(order.sealed) == len(sites), "secure-shares", "shares are missing")
        received = {
            peer: self.own_share if peer == self.site else self._open(peer, sealed)
            for peer, sealed in zip(sites, order.sealed, strict=True)
        }
        return Ready(self.setting, self.site, self.secrets, self.peers, self.roster, received)

    def _open(self, peer: str, sealed: str) -> bytes:
        share = open_from(
            self.secrets.share_private,
            self.peers[peer].share_public,
            sealed,
            self.setting.session,
            self.roster,
            sender=peer,
            receiver=self.site,
        )
        require(len(share) == 2 * SEED_BYTES, "secure-shares", "a share has another size")
        return share


@dataclasses.dataclass(frozen=True)
class Ready:
    """Everything to mask one update with is here."""

    setting: Setting
    site: str
    secrets: _Secrets
    peers: Mapping[str, SiteKeys]
    roster: str
    received: Mapping[str, bytes] = dataclasses.field(repr=False)

    def mask(self, integers_D: NDArray[np.int64]) -> tuple[Masked, bytes]:
        """The update under all masks, as words mod 2^w: uniformly random to whoever lacks a mask.

        Raises SecureAggregationError "secure-input" for another size or an integer beyond B.
        """
        grid, size = self.setting.fixed_point, self.setting.size
        require(integers_D.shape == (size,), "secure-input", "the update has another size")
        words_D = grid.to_words(integers_D)
        shape = {"size": size, "word_bits": grid.word_bits}
        words_D = words_D + self_mask(self.secrets.self_seed, self.setting.session, **shape)
        private = mask_key(self.secrets.mask_seed, self.setting.session)
        for peer in self.received:
            if peer == self.site:
                continue
            public, pair = self.peers[peer].mask_public, (self.site, peer)
            mask_D = pair_mask(private, public, self.setting.session, pair, **shape)
            words_D = words_D + mask_D if self.site < peer else words_D - mask_D
        masked = Masked(self.setting, self.site, self.roster, self.received)
        return masked, grid.write(words_D)


@dataclasses.dataclass(frozen=True)
class Masked:
    """The update has left, or may have; the list of survivors is awaited. Own secrets are gone."""

    setting: Setting
    site: str
    roster: str
    received: Mapping[str, bytes] = dataclasses.field(repr=False)

    def confirm(self, listed: SurvivorList) -> tuple[Confirmed, Confirmation]:
        """Agree to one list of survivors, once.

        Raises SecureAggregationError "secure-survivors" for a list that is not a partition of
        those whose masks are in this site's update, that lacks this site, or of too few.
        """
        here = self.setting.names(listed) and listed.roster_sha256 == self.roster
        require(here, "secure-survivors", "the list is of another round, plan or roster")
        require_survivors(listed, self.setting, list(self.received))
        alive = self.site in listed.survivors
        require(alive, "secure-survivors", "this site's own update is said to have dropped")
        confirmation = Confirmation(
            job=listed.job,
            round=listed.round,
            plan_sha256=listed.plan_sha256,
            roster_sha256=self.roster,
            site=self.site,
            survivors=listed.survivors,
            dropped=listed.dropped,
        )
        return Confirmed(self.setting, confirmation, self.received), confirmation


@dataclasses.dataclass(frozen=True)
class Confirmed:
    """One list of survivors is signed; proof is awaited that a threshold signed the same."""

    setting: Setting
    confirmation: Confirmation
    received: Mapping[str, bytes] = dataclasses.field(repr=False)

    def unmask(self, order: UnmaskOrder) -> Unmasking:
        """This site's share of one seed of each site: own mask if it survived, mask key if not.

        Raises SecureAggregationError "secure-confirmations" unless a threshold of survivors
        signed exactly the list that this site signed.
        """
        mine = self.confirmation
        require(self.setting.names(order), "secure-confirmations", "they are of another round")
        signers = self._signers(order)
        enough = len(signers) >= self.setting.threshold
        require(enough, "secure-confirmations", "fewer than the threshold confirmed this list")
        return Unmasking(
            job=mine.job,
            round=mine.round,
            plan_sha256=mine.plan_sha256,
            roster_sha256=mine.roster_sha256,
            site=mine.site,
            survivor_shares=tuple(self.received[s][SEED_BYTES:].hex() for s in mine.survivors),
            dropped_shares=tuple(self.received[s][:SEED_BYTES].hex() for s in mine.dropped),
        )

    def _signers(self, order: UnmaskOrder) -> frozenset[str]:
        mine, waiting = self.confirmation, list(order.confirmations)
        signers = set()
        require(len(waiting) <= len(mine.survivors), "secure-confirmations", "there are too many")
        for site in mine.survivors:
            if waiting and self._agrees(waiting[0], site):
                signers.add(site)
                waiting.pop(0)
        require(not waiting, "secure-confirmations", "one is not a survivor's, or of another list")
        return frozenset(signers)

    def _agrees(self, envelope: str, site: str) -> bool:
        try:
            theirs = open_signed(Confirmation, envelope.encode(), self.setting, site)
        except AuricleError:
            return False
        return dataclasses.replace(theirs, site=self.confirmation.site) == self.confirmation
