"""Joining: over TLS that trusts the invite's CA only, with faults said in words."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from pathlib import Path

import pytest
import rfc8785

from client_node import enrol
from client_node.errors import LinkError, SiteError
from client_node.home import SiteHome, SiteSettings
from client_node.invite import INVITE_TYPE, read_invite
from client_node.keys import create_keys, load_keys, trusted_coordinator
from client_node.policy import SitePolicy, default_policy
from client_node.service import run_site
from client_node.supernode import free_port
from privacy.signing import Identity, PublicIdentity, open_statement, seal_statement
from tests.client_node.fake_https import Authority, FakeCoordinator

NOW = dt.datetime(2026, 11, 23, tzinfo=dt.UTC)


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    made = SiteHome(tmp_path / "home")
    made.create()
    create_keys(made)
    default_policy(made.policy)
    SiteSettings(site="north", base_folder=str(tmp_path / "base")).save(made.settings)
    return made


def write_invite(path: Path, identity: Identity, url: str, ca_pem: str, **changes: object) -> Path:
    fields = {
        "format": "auricle/invite/v1",
        "site": "north",
        "token": "one-time-token",
        "coordinator_url": url,
        "ca_pem": ca_pem,
        "coordinator_public_pem": identity.public.public_pem,
        "expires_at": NOW.timestamp() + 3600,
        **changes,
    }
    path.write_bytes(seal_statement(rfc8785.dumps(fields), INVITE_TYPE, identity))
    return path


def test_joining_pins_the_coordinator_and_proves_the_key(
    home: SiteHome, fake: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    path = write_invite(tmp_path / "invite", fake.identity, fake.url, authority.ca_pem)
    enrol.join(home, path, NOW)
    (request,) = fake.requests
    assert request["path"] == "/v1/auricle/enrol"
    site = PublicIdentity.from_pem(request["site_public_pem"])
    assert site == load_keys(home).identity.public
    proof = open_statement(request["statement"].encode(), enrol.ENROLMENT_TYPE, (site,))
    assert json.loads(proof) == {
        "token_sha256": hashlib.sha256(b"one-time-token").hexdigest(),
        "site": "north",
        "node_public": load_keys(home).node_public_openssh,
    }
    assert request["node_public_openssh"].startswith("ecdsa-sha2-nistp384 ")
    assert home.enrolled
    assert trusted_coordinator(home) == fake.identity.public
    assert home.ca.read_text() == authority.ca_pem
    assert SiteSettings.load(home.settings).coordinator_url == fake.url
    policy = SitePolicy.load(home.policy)
    assert policy.coordinators == (fake.identity.public.key_id,)
    assert "# Least noise" in home.policy.read_text()  # its comments survive
    assert enrol.join(home, path, NOW).approved  # after a lost answer


@pytest.mark.parametrize("command", ["join", "start"])
def test_wrong_ca_is_named(
    home: SiteHome, fake: FakeCoordinator, authority: Authority, tmp_path: Path, command: str
) -> None:
    other = Authority(tmp_path / "other")
    with pytest.raises(LinkError, match="not vouched for") as caught:
        attempt(command, home, fake.identity, fake.url, other.ca_pem, tmp_path)
    assert caught.value.code == "coordinator-untrusted"
    assert fake.requests == []
    assert "intercepting" in caught.value.remedy


@pytest.mark.parametrize("command", ["join", "start"])
@pytest.mark.parametrize("url", ["https://127.0.0.1:{closed}", "https://no-such-host.invalid:443"])
def test_unreachable_coordinator_is_named(
    home: SiteHome, authority: Authority, tmp_path: Path, command: str, url: str
) -> None:
    url = url.format(closed=free_port())
    with pytest.raises(LinkError, match="cannot be reached") as caught:
        attempt(command, home, Identity.generate(), url, authority.ca_pem, tmp_path)
    assert caught.value.code == "coordinator-unreachable"
    assert "firewall" in caught.value.remedy
    if command == "join":
        assert not home.enrolled


def attempt(
    command: str, home: SiteHome, identity: Identity, url: str, ca_pem: str, folder: Path
) -> None:
    if command == "join":
        enrol.join(home, write_invite(folder / "invite", identity, url, ca_pem), NOW)
        return
    home.coordinator_key.write_text(identity.public.public_pem)
    home.ca.write_text(ca_pem)
    settings = SiteSettings(site="north", base_folder="nowhere", coordinator_url=url)
    settings.save(home.settings)
    run_site(home)


def test_starting_before_joining_says_so(home: SiteHome) -> None:
    with pytest.raises(SiteError, match="not joined") as caught:
        run_site(home)
    assert caught.value.code == "not-enrolled"
    assert "site join" in caught.value.remedy


def test_altered_expired_and_foreign_invites_are_refused(
    home: SiteHome, fake: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    path = tmp_path / "invite"

    def refused(code: str) -> None:
        with pytest.raises(SiteError) as caught:
            enrol.join(home, path, NOW)
        assert caught.value.code == code
        assert not home.enrolled

    refused("invite-missing")
    path.write_text("hello")
    refused("invite-invalid")
    write_invite(path, fake.identity, fake.url, authority.ca_pem)
    envelope = json.loads(path.read_bytes())
    envelope["signatures"][0]["sig"] = envelope["signatures"][0]["sig"][::-1]
    path.write_text(json.dumps(envelope))
    refused("invite-invalid")
    write_invite(path, fake.identity, "http://127.0.0.1:80", authority.ca_pem)
    refused("invite-invalid")
    write_invite(path, fake.identity, fake.url, "no certificate")
    refused("invite-invalid")
    write_invite(path, fake.identity, fake.url, authority.ca_pem, expires_at=NOW.timestamp() - 1)
    refused("invite-expired")
    write_invite(path, fake.identity, fake.url, authority.ca_pem, site="south")
    refused("invite-other-site")
    assert fake.requests == []


def test_a_site_that_waits_for_approval_is_pinned_and_says_so(
    home: SiteHome, fake: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    path = write_invite(tmp_path / "invite", fake.identity, fake.url, authority.ca_pem)
    pem = fake.identity.public.public_pem
    fake.answer = (200, {"approved": False, "coordinator_public_pem": pem})
    assert not enrol.join(home, path, NOW).approved
    assert home.enrolled


def test_refusal_of_the_coordinator_is_told_by_its_code(
    home: SiteHome, fake: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    path = write_invite(tmp_path / "invite", fake.identity, fake.url, authority.ca_pem)
    fake.answer = (403, {"code": "invite-used", "problem": "used"})
    with pytest.raises(SiteError, match="invite-used") as caught:
        enrol.join(home, path, NOW)
    assert "new invite" in caught.value.remedy
    fake.answer = (200, {"approved": True, "coordinator_public_pem": "another"})
    with pytest.raises(LinkError, match="another key"):
        enrol.join(home, path, NOW)
    assert not home.enrolled


def test_keys_are_made_once_and_private(home: SiteHome) -> None:
    before = load_keys(home).identity.public
    assert create_keys(home).identity.public == before
    for path in home.keys.iterdir():
        assert path.stat().st_mode & 0o077 == 0
    home.node_key.write_text("rubbish")
    with pytest.raises(SiteError) as caught:
        load_keys(home)
    assert caught.value.code == "keys-missing"


def test_invite_names_its_expiry(authority: Authority, tmp_path: Path) -> None:
    identity = Identity.generate()
    path = write_invite(tmp_path / "invite", identity, "https://c:1", authority.ca_pem)
    invite = read_invite(path, NOW)
    assert invite.expires_at == NOW + dt.timedelta(hours=1)
    assert invite.coordinator == identity.public
