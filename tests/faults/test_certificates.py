"""A listener whose certificate is not right: no site says a word to it."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client_node import enrol
from client_node.errors import LinkError
from client_node.home import SiteHome, SiteSettings
from client_node.policy import default_policy
from client_node.service import run_site
from coordinator.tls import Credential, make_authority, make_server
from privacy.signing import Identity
from tests.client_node.fake_https import FakeCoordinator
from tests.client_node.harness import Site
from tests.client_node.test_enrol import NOW, write_invite

pytestmark = pytest.mark.faults
TODAY = datetime.datetime.now(datetime.UTC)
TWO_YEARS = datetime.timedelta(days=730)


@dataclasses.dataclass(frozen=True)
class Certified:
    """A server's certificate and key as files, as `FakeCoordinator` takes them."""

    certificate: Path
    key: Path


@dataclasses.dataclass(frozen=True)
class Fault:
    """A server certificate, and the CA that the site trusts."""

    server: Credential
    ca_pem: str


def expired() -> Fault:
    """The certificate was good two years ago; its CA still is."""
    authority = make_authority("coordinator", TODAY - TWO_YEARS)
    server = make_server(authority, ["127.0.0.1"], TODAY - TWO_YEARS)
    return Fault(server, authority.certificate_pem.decode())


def not_yet_valid() -> Fault:
    """The certificate is of a clock that is two years ahead."""
    authority = make_authority("coordinator", TODAY)
    server = make_server(authority, ["127.0.0.1"], TODAY + TWO_YEARS)
    return Fault(server, authority.certificate_pem.decode())


def wrong_authority() -> Fault:
    """Another CA of the very same name has signed it."""
    trusted, other = (make_authority("coordinator", TODAY) for _ in range(2))
    server = make_server(other, ["127.0.0.1"], TODAY)
    return Fault(server, trusted.certificate_pem.decode())


def wrong_name() -> Fault:
    """The right CA has signed it, for another host."""
    authority = make_authority("coordinator", TODAY)
    server = make_server(authority, ["other.example", "127.0.0.2"], TODAY)
    return Fault(server, authority.certificate_pem.decode())


@contextmanager
def served(fault: Fault, folder: Path) -> Iterator[FakeCoordinator]:
    """A coordinator behind the faulty certificate."""
    files = Certified(folder / "server.pem", folder / "server.key")
    files.certificate.write_bytes(fault.server.certificate_pem)
    files.key.write_bytes(fault.server.key_pem)
    server = FakeCoordinator(files, Identity.generate())  # type: ignore[arg-type]
    try:
        yield server
    finally:
        server.close()


def assert_refused(fault: Fault, tmp_path: Path, site: Site) -> None:
    """Neither joining nor starting goes past the handshake, and the invite is not spent."""
    with served(fault, tmp_path) as server:
        home = SiteHome(tmp_path / "joining")
        home.create()
        SiteSettings(site="north", base_folder="nowhere").save(home.settings)
        default_policy(home.policy)
        invite = write_invite(tmp_path / "invite", server.identity, server.url, fault.ca_pem)
        with pytest.raises(LinkError) as caught:
            enrol.join(home, invite, NOW)
        assert caught.value.code == "coordinator-untrusted"
        assert not home.enrolled

        site.home.ca.write_text(fault.ca_pem)
        settings = SiteSettings.load(site.home.settings)
        dataclasses.replace(settings, coordinator_url=server.url).save(site.home.settings)
        with pytest.raises(LinkError) as caught:
            run_site(site.home)
        assert caught.value.code == "coordinator-untrusted"
        assert server.requests == []


def test_an_expired_certificate_is_not_spoken_to(tmp_path: Path, site: Site) -> None:
    assert_refused(expired(), tmp_path, site)


def test_a_certificate_not_yet_valid_is_not_spoken_to(tmp_path: Path, site: Site) -> None:
    assert_refused(not_yet_valid(), tmp_path, site)


def test_a_certificate_of_the_wrong_ca_is_not_spoken_to(tmp_path: Path, site: Site) -> None:
    assert_refused(wrong_authority(), tmp_path, site)


def test_a_certificate_of_the_wrong_name_is_not_spoken_to(tmp_path: Path, site: Site) -> None:
    assert_refused(wrong_name(), tmp_path, site)
