"""An active coordinator against secure aggregation: correctly signed orders, and every lie in them.

Each attack would, if a site played along, open one site's update or give two sums of one round.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.planning import make_plan
from privacy.parcel import Answer, Parcel, ParcelKind, RoundOrder
from privacy.plan import RoundPlan
from privacy.secure_aggregation.agreement import public_hex
from privacy.secure_aggregation.coordinator import Gathered
from privacy.secure_aggregation.messages import (
    Confirmation,
    KeysOrder,
    MaskOrder,
    SiteKeys,
    SurvivorList,
    UnmaskOrder,
)
from privacy.secure_aggregation.setting import Setting
from privacy.signing import Identity, open_as, seal
from tests.client_node.harness import Coordinator
from tests.coordinator.fakes import SPEC, SmallArtifacts, request
from tests.e2e.secure_federation import NAMES, RealSite

WEIGHTS = bytes(4 * SPEC.size)
QUORUM = HONEST = 3


class Hand:
    """A coordinator played by hand, with five real sites."""

    def __init__(self, folder: Path) -> None:
        self.identity = Identity.generate()
        self.sites = {name: RealSite(name, self.identity.public, folder / name) for name in NAMES}
        self.coordinator = Coordinator(self.identity)
        self.plan = self.make_plan("0a")

    def make_plan(self, job: str, **keys: str) -> RoundPlan:
        own = {name: site.identity.public.raw_hex for name, site in self.sites.items()}
        asked = request(
            privacy_mode="secure-aggregation", quorum=QUORUM, honest_sites=HONEST, rounds=5
        )
        artifacts = SmallArtifacts().prepare(None, None)
        return make_plan(asked, artifacts, NAMES, job=job, issued_at_s=1.8e9, site_keys=own | keys)

    def ask(self, site: str, kind: ParcelKind, message: Any, payload: bytes = b"") -> Parcel:
        return self.sites[site](Parcel(kind, seal(message, self.identity), payload))

    def code(self, site: str, kind: ParcelKind, message: Any, payload: bytes = b"") -> str:
        """The code with which `site` refuses."""
        reply = self.ask(site, kind, message, payload)
        assert reply.kind == "refused"
        return open_as(Answer, reply.statement, (self.sites[site].identity.public,)).code

    def prepare(self, plan: RoundPlan | None = None) -> None:
        for site in NAMES:
            assert self.ask(site, "prepare", plan or self.plan, b"basis").kind == "accepted"

    def order(self, number: int = 1) -> RoundOrder:
        parcel = self.coordinator.order(self.plan, number, WEIGHTS)
        return open_as(RoundOrder, parcel.statement, (self.identity.public,))

    def named(self, number: int = 1) -> tuple[str, int, str]:
        return self.plan.job, number, self.plan.sha256

    def gather(self, number: int = 1) -> Gathered:
        order = KeysOrder(*self.named(number))
        keys = {site: self.ask(site, "secure-keys", order) for site in NAMES}
        assert {reply.kind for reply in keys.values()} == {"keys"}
        statements = {site: reply.statement for site, reply in keys.items()}
        return Gathered.of(Setting.of(self.plan, number), statements)

    def share(self, gathered: Gathered, number: int = 1) -> dict[str, MaskOrder]:
        replies = {site: self.ask(site, "secure-shares", gathered.roster()) for site in NAMES}
        shares = {s: gathered.shares(reply.statement, s) for s, reply in replies.items()}
        order = self.order(number)
        return {site: gathered.mask_order(order, shares, site) for site in NAMES}

    def mask(self, number: int = 1) -> Gathered:
        """Everything up to the masked updates."""
        gathered = self.gather(number)
        for site, order in self.share(gathered, number).items():
            assert self.ask(site, "secure-round", order, WEIGHTS).kind == "update"
        return gathered

    def confirm(self, gathered: Gathered, survivors: tuple[str, ...], at: str) -> bytes:
        listed = gathered.survivor_list(NAMES, survivors)
        reply = self.ask(at, "secure-confirm", listed)
        assert reply.kind == "confirmed"
        return reply.statement

    def confirm_all(self, gathered: Gathered) -> dict[str, bytes]:
        return {site: self.confirm(gathered, NAMES, site) for site in NAMES}


@pytest.fixture
def hand(tmp_path: Path) -> Iterator[Hand]:
    made = Hand(tmp_path)
    yield made
    for site in made.sites.values():
        site.close()


@pytest.fixture
def ready(hand: Hand) -> Hand:
    hand.prepare()
    return hand


def spent(site: RealSite) -> int:
    state = site.budget.spent("dictation")
    return state.reserved + state.committed


# The orders by hand are right: without a lie each is obeyed.


def test_without_a_lie_the_sites_unmask(ready: Hand) -> None:
    gathered = ready.mask()
    proof = gathered.unmask_order(ready.confirm_all(gathered))
    listed = gathered.survivor_list(NAMES, NAMES)
    for site in NAMES:
        reply = ready.ask(site, "secure-unmask", proof)
        assert reply.kind == "unmasked"
        assert gathered.unmasking(reply.statement, site, listed)


# Swapped keys: man in the middle between sites.


@pytest.mark.parametrize("signer", ["coordinator", "another site", "nobody"])
def test_swapped_keys_are_refused(ready: Hand, signer: str) -> None:
    gathered = ready.gather()
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    mine = public_hex(X25519PrivateKey.generate())
    lie = dataclasses.replace(gathered.keys["north"], share_public=mine, mask_public=mine)
    honest = gathered.envelopes["north"]
    forged = {
        "coordinator": seal(lie, ready.identity),
        "another site": seal(lie, ready.sites["west"].identity),
        "nobody": honest.replace(b'"payload":"', b'"payload":"AA'),
    }[signer]
    roster = dataclasses.replace(
        gathered.roster(),
        keys=tuple(
            forged.decode() if data == honest else data.decode()
            for data in gathered.envelopes.values()
        ),
    )
    assert ready.code("east", "secure-shares", roster) == "secure-signature"


def test_a_plan_cannot_give_a_known_site_another_key(hand: Hand) -> None:
    hand.prepare()
    invented = hand.make_plan("0b", north=Identity.generate().public.raw_hex)
    assert hand.code("east", "prepare", invented, b"basis") == "peer-key-changed"
    # Not even a site's own.
    assert hand.code("north", "prepare", invented, b"basis") == "peer-key-changed"
    assert hand.ask("east", "prepare", hand.make_plan("0c"), b"basis").kind == "accepted"


def test_a_policy_that_lists_peers_takes_those_alone(hand: Hand) -> None:
    east = hand.sites["east"]
    others = {n: s.identity.public.key_id for n, s in hand.sites.items() if n != "east"}
    listed = "".join(f'{name} = "{key}"\n' for name, key in others.items())
    text = east.policy.read_text()
    east.policy.write_text(text + listed.replace("york", "cork"))
    east.restart()
    assert hand.code("east", "prepare", hand.plan, b"basis") == "policy-peers"
    east.policy.write_text(text + listed)
    east.restart()
    invented = hand.make_plan("0b", york=Identity.generate().public.raw_hex)
    assert hand.code("east", "prepare", invented, b"basis") == "peer-key-changed"
    assert hand.ask("east", "prepare", hand.plan, b"basis").kind == "accepted"


def test_a_peer_with_new_keys_is_believed_when_the_policy_says_so(hand: Hand) -> None:
    hand.prepare()
    renewed = Identity.generate().public
    plan = hand.make_plan("0b", north=renewed.raw_hex)
    others = {n: s.identity.public.key_id for n, s in hand.sites.items() if n != "east"}
    others["north"] = renewed.key_id
    listed = "".join(f'{name} = "{key}"\n' for name, key in others.items())
    east = hand.sites["east"]
    east.policy.write_text(east.policy.read_text() + listed)
    east.restart()
    assert hand.ask("east", "prepare", plan, b"basis").kind == "accepted"


def test_a_roster_with_another_key_of_this_site_is_refused(ready: Hand) -> None:
    before = ready.gather()
    ready.sites["east"].restart()
    ready.ask("east", "secure-keys", KeysOrder(*ready.named()))
    assert ready.code("east", "secure-shares", before.roster()) == "secure-roster"


# Both dropped and alive: two sums, whose difference is one site's update.


def test_a_site_both_dropped_and_alive_in_one_list_is_refused(ready: Hand) -> None:
    gathered = ready.mask()
    listed = gathered.survivor_list(NAMES, NAMES)
    for lie in (
        {"dropped": ("north",)},
        {"survivors": NAMES[1:]},
        {"survivors": (*NAMES, "york")},
        {"survivors": (*NAMES, "zoe")},
        {"survivors": NAMES[:4], "dropped": ("west", "york")},
    ):
        told = dataclasses.replace(listed, **lie)
        assert ready.code("east", "secure-confirm", told) == "secure-survivors"
    assert ready.confirm(gathered, NAMES, "east")


def test_a_site_confirms_one_list_and_no_second(ready: Hand) -> None:
    gathered = ready.mask()
    ready.confirm(gathered, NAMES, "east")
    other = gathered.survivor_list(NAMES, NAMES[:4])
    assert ready.code("east", "secure-confirm", other) == "secure-conflict"


def test_two_lists_to_two_halves_unmask_neither(ready: Hand) -> None:
    gathered = ready.mask()
    one, other = NAMES, NAMES[:4]
    halves = {site: one if site in ("north", "york") else other for site in NAMES}
    confirmed = {site: ready.confirm(gathered, halves[site], site) for site in NAMES}
    for site in NAMES:
        same = {s: data for s, data in confirmed.items() if halves[s] == halves[site]}
        # All that agree with the site's list, all that there are, and those of the other list.
        for proof in (same, confirmed, {s: confirmed[s] for s in NAMES if s not in same}):
            order = gathered.unmask_order(proof)
            if len(same) >= QUORUM and proof is same:
                continue
            assert ready.code(site, "secure-unmask", order) == "secure-confirmations"


def test_a_sites_own_update_cannot_be_declared_dropped_to_it(ready: Hand) -> None:
    gathered = ready.mask()
    listed = gathered.survivor_list(NAMES, NAMES[1:])
    assert NAMES[0] in listed.dropped
    assert ready.code(NAMES[0], "secure-confirm", listed) == "secure-survivors"


# Too few: a sum of few sites, or of one.


def test_too_few_are_refused_at_every_step(ready: Hand) -> None:
    gathered = ready.gather()
    few = dataclasses.replace(gathered.roster(), keys=gathered.roster().keys[: QUORUM - 1])
    assert ready.code("east", "secure-shares", few) == "secure-roster"
    orders = ready.share(gathered)
    east = orders["east"]
    alone = dataclasses.replace(east, sites=east.sites[:2], sealed=east.sealed[:2])
    assert ready.code("east", "secure-round", alone, WEIGHTS) == "secure-roster"
    assert spent(ready.sites["east"]) == 0
    for site, order in orders.items():
        assert ready.ask(site, "secure-round", order, WEIGHTS).kind == "update"
    listed = gathered.survivor_list(NAMES, ("east", "north"))
    assert ready.code("east", "secure-confirm", listed) == "secure-survivors"
    confirmed = ready.confirm_all(gathered)
    proof = gathered.unmask_order({s: confirmed[s] for s in ("east", "north")})
    assert ready.code("east", "secure-unmask", proof) == "secure-confirmations"
    repeated = dataclasses.replace(proof, confirmations=(proof.confirmations[0],) * QUORUM)
    assert ready.code("east", "secure-unmask", repeated) == "secure-confirmations"


def test_confirmations_that_no_site_signed_are_worth_nothing(ready: Hand) -> None:
    gathered = ready.mask()
    ready.confirm(gathered, NAMES, "east")
    listed = dataclasses.asdict(gathered.survivor_list(NAMES, NAMES))
    forged = [seal(Confirmation(**listed, site=site), ready.identity) for site in NAMES]
    proof = UnmaskOrder(*ready.named(), tuple(data.decode() for data in forged))
    assert ready.code("east", "secure-unmask", proof) == "secure-confirmations"


# Shares that are not the sender's.


def test_shares_altered_on_the_way_are_refused_before_anything_is_spent(ready: Hand) -> None:
    orders = ready.share(ready.gather())
    order = orders["east"]
    swapped = (order.sealed[0], order.sealed[2], order.sealed[1], *order.sealed[3:])
    flipped = tuple(sealed[:-1] + ("0" if sealed[-1:] != "0" else "1") for sealed in order.sealed)
    for sealed in (swapped, flipped, orders["north"].sealed, ("",) * 5, ("zz",) * 5):
        lie = dataclasses.replace(order, sealed=sealed)
        assert ready.code("east", "secure-round", lie, WEIGHTS) == "secure-shares"
    assert spent(ready.sites["east"]) == 0
    assert ready.ask("east", "secure-round", order, WEIGHTS).kind == "update"


# Replays, within a round and of another.


def test_keys_of_an_earlier_round_are_refused_in_the_next(ready: Hand) -> None:
    first = ready.mask()
    second = ready.gather(2)
    entries = {**second.envelopes, "north": first.envelopes["north"]}
    roster = dataclasses.replace(
        second.roster(), keys=tuple(data.decode() for data in entries.values())
    )
    assert ready.code("east", "secure-shares", roster) == "secure-signature"
    assert ready.code("east", "secure-shares", first.roster()) == "secure-session"


def test_a_finished_round_is_not_played_again(ready: Hand) -> None:
    gathered = ready.mask()
    proof = gathered.unmask_order(ready.confirm_all(gathered))
    first = ready.ask("east", "secure-unmask", proof)
    ready.sites["east"].restart()
    for kind, message in (
        ("secure-shares", gathered.roster()),
        ("secure-confirm", gathered.survivor_list(NAMES, NAMES[:4])),
        ("secure-unmask", proof),
    ):
        assert ready.code("east", kind, message) == "secure-session"
    assert ready.code("east", "secure-keys", KeysOrder(*ready.named())) == "round-stale"
    assert first.kind == "unmasked"
    assert spent(ready.sites["east"]) == 1


def test_a_round_asked_again_gives_the_same_masked_bytes_for_whatever_sites(ready: Hand) -> None:
    orders = ready.share(ready.gather())
    order = orders["east"]
    once = ready.ask("east", "secure-round", order, WEIGHTS)
    fewer = dataclasses.replace(order, sites=order.sites[:4], sealed=order.sealed[:4])
    assert ready.ask("east", "secure-round", fewer, WEIGHTS) == once
    assert len(ready.sites["east"].events("round.trained")) == 1


def test_steps_out_of_turn_are_refused(ready: Hand) -> None:
    gathered = ready.gather()
    listed = gathered.survivor_list(NAMES, NAMES)
    assert ready.code("east", "secure-confirm", listed) == "secure-session"
    orders = ready.share(gathered)
    assert ready.code("east", "secure-confirm", listed) == "secure-session"
    ready.ask("east", "secure-round", orders["east"], WEIGHTS)
    proof = UnmaskOrder(*ready.named(), ())
    assert ready.code("east", "secure-unmask", proof) == "secure-session"


def test_a_second_roster_for_one_round_is_refused(ready: Hand) -> None:
    gathered = ready.gather()
    ready.share(gathered)
    fewer = dataclasses.replace(gathered.roster(), keys=gathered.roster().keys[:4])
    assert ready.code("east", "secure-shares", fewer) == "secure-conflict"


# Around the protocol.


def test_a_plain_order_under_a_secure_plan_is_refused(ready: Hand) -> None:
    assert ready.code("east", "round", ready.order(), WEIGHTS) == "aggregation-mismatch"
    assert spent(ready.sites["east"]) == 0


def test_a_secure_order_under_a_plain_plan_is_refused(hand: Hand) -> None:
    plain = dataclasses.replace(hand.plan, privacy_mode="local-noise", site_keys=())
    hand.prepare(plain)
    order = KeysOrder(plain.job, 1, plain.sha256)
    assert hand.code("east", "secure-keys", order) == "aggregation-mismatch"


def test_orders_that_another_signed_are_refused(ready: Hand) -> None:
    gathered = ready.mask()
    ready.identity = Identity.generate()
    for kind, message in (
        ("secure-keys", KeysOrder(*ready.named(2))),
        ("secure-shares", gathered.roster()),
        ("secure-confirm", gathered.survivor_list(NAMES, NAMES)),
        ("secure-unmask", UnmaskOrder(*ready.named(), ())),
    ):
        assert ready.code("east", kind, message) == "signature-invalid"


def test_a_statement_of_one_step_does_not_pass_for_another(ready: Hand) -> None:
    gathered = ready.mask()
    listed = gathered.survivor_list(NAMES, NAMES)
    statement = seal(listed, ready.identity)
    reply = ready.sites["east"](Parcel("secure-unmask", statement))
    assert reply.kind == "refused"
    assert isinstance(listed, SurvivorList)


def test_what_left_the_site_names_neither_seeds_nor_shares_of_others_masks(ready: Hand) -> None:
    """A survivor's mask key, and a dropped site's own mask, have no share in what is sent."""
    gathered = ready.mask()
    survivors = tuple(name for name in NAMES if name != "york")
    confirmed = {site: ready.confirm(gathered, survivors, site) for site in survivors}
    proof = gathered.unmask_order(confirmed)
    from privacy.secure_aggregation.messages import Unmasking

    sent = [
        open_as(
            Unmasking,
            ready.ask(site, "secure-unmask", proof).statement,
            (ready.sites[site].identity.public,),
        )
        for site in survivors
    ]
    for one in sent:
        assert (len(one.survivor_shares), len(one.dropped_shares)) == (4, 1)
    everything = [share for one in sent for share in (*one.survivor_shares, *one.dropped_shares)]
    assert len(set(everything)) == len(everything) == 20
    assert all(isinstance(keys, SiteKeys) for keys in gathered.keys.values())
