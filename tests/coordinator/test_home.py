"""Settings, keys and certificates of a coordinator's home; job requests."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
from pathlib import Path

import pytest
from cryptography import x509

from coordinator.errors import CoordinatorError, RequestError
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.listeners import Listener
from coordinator.model_artifacts import SpeechArtifacts
from coordinator.planning import make_plan
from coordinator.request import AdapterRequest, parse_request, parse_stored, request_json
from privacy.errors import PlanError
from tests.coordinator.fakes import SmallArtifacts, request

NOW = datetime.datetime.now(datetime.UTC)
NAMES = ("coordinator.example.org", "10.0.0.7")


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("h") / "home"
    return CoordinatorHome.create(folder, CoordinatorSettings(public_names=NAMES), NOW)


def test_everything_is_private_to_the_account(home):
    for path in [home.root, *home.root.rglob("*")]:
        if path != home.settings_file:
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_settings_survive(home):
    assert home.settings() == CoordinatorSettings(public_names=NAMES)


def test_a_home_is_never_overwritten(home):
    key = home.identity_file.read_bytes()
    with pytest.raises(CoordinatorError) as caught:
        CoordinatorHome.create(home.root, CoordinatorSettings(), NOW)
    assert caught.value.code == "home-exists"
    assert home.identity_file.read_bytes() == key


def test_invites_name_the_first_host_and_the_ca(home):
    endpoint = home.endpoint(home.settings(), 9443)
    assert endpoint.coordinator_url == "https://coordinator.example.org:9443"
    assert "BEGIN CERTIFICATE" in endpoint.ca_pem


def test_the_certificate_is_for_those_names_and_no_authority(home):
    certificate = x509.load_pem_x509_certificate(home.server_certificate_file.read_bytes())
    authority = x509.load_pem_x509_certificate(home.ca_file.read_bytes())
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAMES[0]]
    assert [str(ip) for ip in names.get_values_for_type(x509.IPAddress)] == [NAMES[1]]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


@pytest.mark.parametrize(
    "text",
    ["public_port = 'x'", "colour = 'red'", "public_names = []", "not toml", "admin_port = true"],
)
def test_faulty_settings_are_named(tmp_path, text):
    (tmp_path / "coordinator.toml").write_text(text)
    with pytest.raises(CoordinatorError) as caught:
        CoordinatorHome(tmp_path).settings()
    assert caught.value.code == "settings-invalid"
    assert caught.value.remedy


def test_missing_settings_say_what_to_do(tmp_path):
    with pytest.raises(CoordinatorError, match="there is no") as caught:
        CoordinatorHome(tmp_path).settings()
    assert "coordinator init" in caught.value.remedy


def test_a_port_in_use_is_said_so():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(CoordinatorError) as caught:
            Listener(None, "127.0.0.1", taken.getsockname()[1])
    assert caught.value.code == "port-in-use"


def test_the_ca_alone_makes_a_client_trust(home):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(home.ca_file))
    assert len(context.get_ca_certs()) == 1


def test_a_request_survives_storage():
    original = request(adapter=AdapterRequest(target_modules=("q_proj", "v_proj")))
    assert parse_stored(request_json(original)) == original


@pytest.mark.parametrize(
    ("changes", "where"),
    [({"colour": 1}, "colour"), ({"rounds": "many"}, "rounds"), ({"adapter": {"x": 1}}, "adapter")],
)
def test_a_faulty_request_names_the_field(changes, where):
    fields = {"purpose": "p", "base_folder": "b", "rounds": 1, "sampling_rate": 0.5}
    fields |= {"clipping_norm": 1, "delta": 1e-6, "expected_subjects": 9, "epsilon": 8}
    assert parse_request(fields).base_folder == Path("b")
    with pytest.raises(RequestError, match=where) as caught:
        parse_request(fields | changes)
    assert caught.value.code == "request-invalid"


@pytest.mark.parametrize(
    "changes",
    [
        {"noise_multiplier": None},
        {"epsilon": 8.0},
        {"privacy_mode": "none"},
        {"privacy_mode": "none", "noise_multiplier": None, "epsilon": 8.0},
    ],
)
def test_a_request_says_how_private_in_exactly_one_way(changes):
    with pytest.raises(RequestError):
        request(**changes)


def plan_of(asked, sites=("a", "b", "c")):
    artifacts = SmallArtifacts().prepare(None, None)
    return make_plan(asked, artifacts, sites, job="ab" * 8, issued_at_s=1.8e9)


def test_the_noise_is_calibrated_to_the_target():
    from coordinator.planning import guarantees

    plan = plan_of(request(noise_multiplier=None, epsilon=4.0, rounds=30))
    epsilon_loc, epsilon_sec = guarantees(plan, 30)
    assert 3.9 < epsilon_loc <= 4.0
    assert epsilon_sec < epsilon_loc
    assert guarantees(plan, 0) == (0.0, 0.0)


def test_a_plan_asks_for_every_site_unless_told_otherwise():
    plan = plan_of(request())
    assert (plan.sites, plan.quorum, plan.honest_sites) == (("a", "b", "c"), 3, 2)
    plan = plan_of(request(sites=("c", "a"), quorum=1, honest_sites=1))
    assert (plan.sites, plan.quorum, plan.honest_sites) == (("a", "c"), 1, 1)


def test_a_plan_needs_active_sites():
    for asked, sites, code in [
        (request(sites=("z",)), ("a",), "site-inactive"),
        (request(), (), "no-sites"),
    ]:
        with pytest.raises(RequestError) as caught:
            plan_of(asked, sites)
        assert caught.value.code == code


def test_a_plan_out_of_range_is_refused():
    with pytest.raises(PlanError):
        plan_of(request(quorum=4))


def test_a_missing_base_keeps_the_model_rooms_code(tmp_path):
    with pytest.raises(CoordinatorError) as caught:
        SpeechArtifacts().prepare(tmp_path / "nowhere", AdapterRequest())
    assert caught.value.code.startswith(("base-", "weights-"))
    assert caught.value.remedy
