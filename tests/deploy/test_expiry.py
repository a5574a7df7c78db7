"""Certificates that end soon are named 30 days before, wherever somebody looks."""

from __future__ import annotations

import json
import ssl
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.tls import CA_DAYS, SERVER_DAYS, make_authority
from deploy.cli import main as cli
from privacy.certificates import WARNING_DAYS, Expiry, expiry_of

NOW = datetime.now(UTC)


@given(st.timedeltas(min_value=timedelta(days=-400), max_value=timedelta(days=400)))
def test_a_warning_is_there_for_thirty_days_and_after(left):
    expiry = Expiry("it", NOW + left, "renew it")
    warning = expiry.warning(NOW)
    assert bool(warning) == (left < timedelta(days=WARNING_DAYS))
    if warning:
        assert "renew it" in warning
        assert ("has ended" in warning) == (left <= timedelta(0))


def home_of(folder, days_ago: int) -> CoordinatorHome:
    settings = CoordinatorSettings(admin_port=1)  # nothing answers there
    return CoordinatorHome.create(folder / "home", settings, NOW - timedelta(days=days_ago))


def status(capsys, home) -> dict[str, object]:
    assert cli.run(["coordinator", "status", "--home", str(home.root), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_server_certificate_is_renewed_before_it_ends(tmp_path, capsys):
    home = home_of(tmp_path, SERVER_DAYS - 20)
    shown = status(capsys, home)
    assert shown["running"] is False
    server, authority = shown["certificates"]
    assert (server["days_left"], authority["warning"]) == (19, "")
    assert "renew-certificate" in server["warning"]
    before = home.server_certificate_file.read_bytes()
    assert cli.run(["coordinator", "renew-certificate", "--home", str(home.root)]) == 0
    capsys.readouterr()
    assert status(capsys, home)["certificates"][0]["warning"] == ""
    assert home.server_certificate_file.read_bytes() != before
    # The pair belongs together, and the authority that sites pinned vouches for it.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.server_certificate_file, home.server_key_file)
    ca = x509.load_pem_x509_certificate(home.ca_file.read_bytes())
    renewed = x509.load_pem_x509_certificate(home.server_certificate_file.read_bytes())
    renewed.verify_directly_issued_by(ca)


@pytest.mark.parametrize(("days_ago", "warned"), [(0, False), (SERVER_DAYS - 1, True)])
def test_start_says_so(tmp_path, capsys, monkeypatch, days_ago, warned):
    home = home_of(tmp_path, days_ago)
    ports = SimpleNamespace(public_port=8443, admin_port=8444)
    monkeypatch.setattr(
        "coordinator.service.run_coordinator", lambda _home, started, _evaluate: started(ports)
    )
    assert cli.run(["coordinator", "start", "--home", str(home.root)]) == 0
    assert ("Warning: server certificate ends" in capsys.readouterr().out) is warned


def test_an_authority_that_ends_is_named(tmp_path, capsys):
    home = home_of(tmp_path, 0)
    home.ca_file.write_bytes(
        make_authority("old", NOW - timedelta(days=CA_DAYS + 2)).certificate_pem
    )
    warning = status(capsys, home)["certificates"][1]["warning"]
    assert "certificate authority has ended" in warning


def test_no_certificate_is_no_expiry():
    with pytest.raises(ValueError, match="PEM"):
        expiry_of(b"nothing", "it", "")
