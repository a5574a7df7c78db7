"""Each check of `auricle doctor` finds its fault, names it, and says what to do."""

from __future__ import annotations

import datetime
import importlib.metadata
import ipaddress
import socket
import ssl
import threading
import tomllib
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deploy import doctor
from deploy.doctor import Check

SERVER_TIME_S = 1_700_000_000


def test_old_python_is_a_fault_and_this_one_is_not() -> None:
    assert doctor.check_python().ok
    old = doctor.check_python((3, 10, 12))
    assert not old.ok
    assert "3.10.12" in old.problem
    assert "3.11" in old.remedy


def test_wrong_and_missing_versions_are_named() -> None:
    installed = {"alpha": "1.0", "beta": "3.1"}

    def version_of(name: str) -> str:
        try:
            return installed[name]
        except KeyError:
            raise importlib.metadata.PackageNotFoundError(name) from None

    fine = doctor.check_versions(["alpha>=1.0", "beta==3.1", "never; extra == 'dev'"], version_of)
    assert fine.ok
    found = doctor.check_versions(["alpha>=2", "beta>=3", "gamma"], version_of)
    assert not found.ok
    assert "alpha 1.0, needs >=2" in found.problem
    assert "gamma is missing" in found.problem
    assert "beta" not in found.problem


def test_what_this_project_requires_is_installed_here() -> None:
    pyproject = Path(__file__).parents[2] / "pyproject.toml"
    requirements = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]["dependencies"]
    assert doctor.check_versions(requirements) == Check(
        "versions", ok=True, problem="all packages as tested or newer"
    )


@pytest.mark.parametrize(("free_bytes", "ok"), [(2**30, False), (2**40, True)])
def test_disk_and_memory(tmp_path: Path, free_bytes: int, ok: bool) -> None:
    for check in (doctor.check_disk(tmp_path, free_bytes), doctor.check_memory(free_bytes)):
        assert check.ok is ok
        assert bool(check.remedy) is not ok


def test_a_missing_synthesiser_is_a_fault() -> None:
    assert not doctor.check_espeak(lambda: "/nonexistent/libespeak.so").ok


def test_weights_that_do_not_verify_give_their_own_remedy() -> None:
    from model_core.errors import WeightsError

    def wrong() -> str:
        raise WeightsError("hash differs", remedy="reinstall", code="weights-checksum")

    check = doctor.check_weights(wrong)
    assert (check.ok, check.problem, check.remedy) == (False, "hash differs", "reinstall")
    assert doctor.check_weights(lambda: "found").ok


def test_a_port_in_use_is_a_fault() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        assert not doctor.check_port(port).ok
    assert doctor.check_port(port).ok


class Certificates:
    """An authority and a server certificate for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        self.ca, ca_key, ca_certificate = _authority(folder / "ca.pem")
        key = ec.generate_private_key(ec.SECP256R1())
        server = (
            _builder("server", ca_certificate.subject, key.public_key())
            .add_extension(
                x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
                critical=False,
            )
            .sign(ca_key, hashes.SHA256())
        )
        self.chain = folder / "server.pem"
        self.chain.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            + server.public_bytes(serialization.Encoding.PEM)
        )


def _authority(path: Path) -> tuple[Path, ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, path.stem)])
    certificate = (
        _builder(path.stem, name, key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return path, key, certificate


def _builder(
    common_name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


class Health(BaseHTTPRequestHandler):
    """Answers as a coordinator does, at a fixed time."""

    def do_GET(self) -> None:
        self.send_response_only(200)
        self.send_header("Date", formatdate(SERVER_TIME_S, usegmt=True))
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def url(certificates: Certificates) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.chain)
    with HTTPServer(("127.0.0.1", 0), Health) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("ahead_s", "ok"), [(0, True), (-200, True), (-301, False), (6, False), (3600, False)]
)
def test_clock_is_held_against_the_coordinators(
    url: str, certificates: Certificates, ahead_s: int, ok: bool
) -> None:
    reached, clock, *_ = doctor.check_coordinator(
        url, certificates.ca, now=lambda: float(SERVER_TIME_S + ahead_s)
    )
    assert reached.ok
    assert clock.ok is ok
    assert bool(clock.remedy) is not ok


def test_wrong_authority_is_told_apart_from_no_answer(url: str, tmp_path: Path) -> None:
    other, _, _ = _authority(tmp_path / "other.pem")
    (wrong,) = doctor.check_coordinator(url, other)
    assert not wrong.ok
    assert "certificate" in wrong.problem
    (silent,) = doctor.check_coordinator("https://127.0.0.1:1", other)
    assert not silent.ok
    assert "cannot be reached" in silent.problem
    (missing,) = doctor.check_coordinator(url, tmp_path / "missing.pem")
    assert not missing.ok
    assert "CA" in missing.problem


def test_certificates_that_end_soon_are_faults(url: str, certificates: Certificates) -> None:
    """Both of these were made for one day."""
    server, authority = doctor.check_coordinator(url, certificates.ca)[2:]
    assert (server.id, authority.id) == ("server-certificate", "authority")
    assert not server.ok
    assert not authority.ok
    assert "operator" in server.remedy
    month_ago_s = datetime.datetime.now(datetime.UTC).timestamp() - 30 * 86400
    *_, early, _ = doctor.check_coordinator(url, certificates.ca, now=lambda: month_ago_s)
    assert early.ok
    assert early.remedy == ""
