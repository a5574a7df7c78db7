"""Enrolment: what an invite is good for, and what it is not."""

from __future__ import annotations

import dataclasses
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coordinator.errors import CoordinatorError, EnrolmentError
from coordinator.registry import INVITE_TYPE
from privacy.signing import Identity, open_statement
from tests.coordinator.fakes import ENDPOINT, FakeSite, Federation, node_key, token_of


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path, names=())
    yield made
    made.engine.dispose()


@pytest.fixture
def registry(federation):
    return federation.tools.registry


@pytest.fixture
def site(federation):
    return FakeSite("north", federation.identity.public)


def invited(federation, name="north", valid_for_s=3600.0) -> str:
    invite = federation.operations.invite(name, valid_for_s, approve=True)
    return token_of(invite, federation.identity.public)


def refusal(registry, enrolment) -> str:
    with pytest.raises(EnrolmentError) as caught:
        registry.enrol(enrolment)
    return caught.value.code


def test_an_invite_says_where_and_whom_to_trust(federation):
    invite = federation.operations.invite("north", 60)
    fields = json.loads(open_statement(invite, INVITE_TYPE, (federation.identity.public,)))
    assert fields.pop("token")
    assert fields == {
        "format": "auricle/invite/v1",
        "site": "north",
        "coordinator_url": ENDPOINT.coordinator_url,
        "ca_pem": ENDPOINT.ca_pem,
        "coordinator_public_pem": federation.identity.public.public_pem,
        "expires_at": federation.clock() + 60,
    }


def test_the_token_is_not_kept(federation, tmp_path):
    token = invited(federation)
    federation.engine.dispose()
    assert all(token.encode() not in file.read_bytes() for file in tmp_path.glob("auricle.db*"))


def test_enrol(federation, registry, site):
    record = registry.enrol(site.enrolment(invited(federation)))
    assert record.active
    assert registry.active()["north"].identity == site.identity.public


def test_a_site_waits_for_approval_and_its_node_stays_out(federation, registry, site):
    token = token_of(federation.operations.invite("north", 3600), federation.identity.public)
    record = federation.operations.enrol(site.enrolment(token))
    assert (record.approved, record.active) == (False, False)
    assert registry.active() == {}
    assert federation.fleet == {}
    record = federation.operations.approve("north")
    assert record.active
    assert federation.fleet == {"north": site.node_public}
    federation.operations.approve("north")  # again changes nothing
    entries = federation.tools.journal.ledger.entries()
    told = [(e.kind, e.fields.get("approved")) for e in entries if e.kind.startswith("site.")]
    assert told == [("site.enrolled", False), ("site.approved", None)]


def test_a_site_that_waits_may_be_turned_away(federation, registry, site):
    token = token_of(federation.operations.invite("north", 3600), federation.identity.public)
    enrolment = site.enrolment(token)
    federation.operations.enrol(enrolment)
    federation.operations.revoke("north")
    with pytest.raises(CoordinatorError) as caught:
        federation.operations.approve("north")
    assert caught.value.code == "site-unknown"
    assert refusal(registry, enrolment) == "invite-used"


def test_the_same_request_again_is_answered_again(federation, registry, site):
    enrolment = site.enrolment(invited(federation))
    assert registry.enrol(enrolment) == registry.enrol(enrolment)
    assert len(registry.sites()) == 1


def test_invite_used(federation, registry, site):
    token = invited(federation)
    registry.enrol(site.enrolment(token))
    other = FakeSite("north", federation.identity.public)
    assert refusal(registry, other.enrolment(token)) == "invite-used"


def test_invite_expired(federation, registry, site):
    token = invited(federation, valid_for_s=10)
    federation.clock.now_s += 10
    assert refusal(registry, site.enrolment(token)) == "invite-expired"


def test_invite_unknown(registry, site):
    assert refusal(registry, site.enrolment("forged")) == "invite-unknown"


def test_invite_site_mismatch(federation, registry):
    south = FakeSite("south", federation.identity.public)
    assert refusal(registry, south.enrolment(invited(federation))) == "invite-site-mismatch"


def test_a_refused_enrolment_does_not_spend_the_invite(federation, registry, site):
    token = invited(federation)
    other = FakeSite("north", federation.identity.public)
    stolen = dataclasses.replace(other.enrolment(token), node_public_openssh=site.node_public)
    assert refusal(registry, stolen) == "proof-invalid"
    assert registry.enrol(site.enrolment(token)).active


def test_proof_invalid_for_a_key_that_is_not_held(federation, registry, site):
    enrolment = site.enrolment(invited(federation))
    claimed = Identity.generate().public.public_pem
    forged = dataclasses.replace(enrolment, site_public_pem=claimed)
    assert refusal(registry, forged) == "proof-invalid"


@pytest.mark.parametrize("statement", [b"", b"{}", b"not json", b"[" * 10_000])
def test_proof_invalid_for_no_statement(federation, registry, site, statement):
    enrolment = dataclasses.replace(site.enrolment(invited(federation)), statement=statement)
    assert refusal(registry, enrolment) == "proof-invalid"


def test_proof_invalid_for_another_invites_token(federation, registry, site):
    first, second = invited(federation), invited(federation)
    mixed = dataclasses.replace(site.enrolment(first), invite_token=second)
    assert refusal(registry, mixed) == "proof-invalid"


@pytest.mark.parametrize("openssh", ["", "ssh-rsa AAAA", node_key(ec.SECP256R1())])
def test_node_key_invalid(federation, registry, site, openssh):
    enrolment = site.enrolment(invited(federation))
    wrong = dataclasses.replace(enrolment, node_public_openssh=openssh)
    assert refusal(registry, wrong) == "node-key-invalid"


def test_site_key_invalid(federation, registry, site):
    enrolment = dataclasses.replace(site.enrolment(invited(federation)), site_public_pem="x")
    assert refusal(registry, enrolment) == "site-key-invalid"


def test_site_exists(federation, registry, site):
    registry.enrol(site.enrolment(invited(federation)))
    other = FakeSite("north", federation.identity.public)
    assert refusal(registry, other.enrolment(invited(federation))) == "site-exists"


@pytest.mark.parametrize("shared", ["identity", "node_public"])
def test_key_in_use(federation, registry, site, shared):
    registry.enrol(site.enrolment(invited(federation)))
    south = FakeSite("south", federation.identity.public)
    setattr(south, shared, getattr(site, shared))
    assert refusal(registry, south.enrolment(invited(federation, "south"))) == "key-in-use"


@pytest.mark.parametrize("name", ["", "North", "a b", "../x", "a\0", "-a", "a-", "x" * 64, "é"])
def test_site_name_invalid(registry, name):
    with pytest.raises(EnrolmentError) as caught:
        registry.invite(name, ENDPOINT, 60)
    assert caught.value.code == "site-name-invalid"


def test_revoked_keys_never_come_back_but_the_site_may(federation, registry, site):
    registry.enrol(site.enrolment(invited(federation)))
    federation.operations.revoke("north")
    assert registry.active() == {}
    assert federation.fleet == {}
    assert refusal(registry, site.enrolment(invited(federation))) == "key-in-use"
    renewed = FakeSite("north", federation.identity.public)
    assert registry.enrol(renewed.enrolment(invited(federation))).active
    assert [record.revoked for record in registry.sites()] == [True, False]


def test_a_spent_invite_does_not_undo_a_revocation(federation, registry, site):
    enrolment = site.enrolment(invited(federation))
    registry.enrol(enrolment)
    registry.revoke("north")
    assert refusal(registry, enrolment) == "invite-used"
    assert registry.active() == {}


@pytest.mark.parametrize("verb", ["revoke", "restore"])
def test_site_unknown(registry, verb):
    with pytest.raises(CoordinatorError) as caught:
        getattr(registry, verb)("nowhere")
    assert caught.value.code == "site-unknown"
