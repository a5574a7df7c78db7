"""The service as a whole: what each port exposes, and that revocation bites."""

from __future__ import annotations

import dataclasses
import datetime
import ssl

import httpx
import pytest

from coordinator.errors import CoordinatorError
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.service import Coordinator
from coordinator.store import LeaseRow
from privacy.signing import Identity
from privacy.store import open_engine, writing
from tests.coordinator.fakes import FakeSite, SmallArtifacts, token_of

# flwr 1.41's own Alembic configuration warns under alembic 1.17.
pytestmark = [
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

SETTINGS = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)
NOT_PUBLIC = [
    "/v1/control/start-run",
    "/v1/control/list-runs",
    "/v1/runtime/acquire-task",
    "/v1/runtime/push-messages",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "//v1/control/start-run",
    "/admin/jobs",
    "/admin/sites",
    "/docs",
    "/openapi.json",
    "/v1/responses",
    "/v1/auricle/enrol/",
    "/v1/auricle/rotate/",
    "/",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    return CoordinatorHome.create(folder, SETTINGS, datetime.datetime.now(datetime.UTC))


@pytest.fixture(scope="module")
def coordinator(home):
    running = Coordinator(home, SmallArtifacts())
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def public(home, coordinator):
    trust = ssl.create_default_context(cafile=str(home.ca_file))
    url = f"https://localhost:{coordinator.public_port}"
    with httpx.Client(base_url=url, verify=trust, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def admin(home, coordinator):
    url = f"http://127.0.0.1:{coordinator.admin_port}"
    headers = {"Authorization": f"Bearer {home.admin_token()}"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
        yield client


def test_health_is_public(public):
    assert public.get("/health").status_code == 200


@pytest.mark.parametrize("path", NOT_PUBLIC)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_public_port_serves_nothing_else(public, method, path):
    response = public.request(method, path)
    assert response.status_code in (404, 401)
    assert not response.content or path.startswith("/v1/fleet/")


def test_fleet_api_refuses_a_node_without_a_signature(public):
    headers = {"Content-Type": "application/protobuf"}
    response = public.post("/v1/fleet/pull-messages", content=b"", headers=headers)
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/control/start-run", "/health"])
def test_admin_port_serves_no_flower_api(admin, path):
    assert admin.post(path).status_code == 404


@pytest.mark.parametrize("token", ["-", "wrong"])
def test_admin_needs_the_token(admin, token):
    response = admin.get("/admin/sites", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 401
    assert response.json()["code"] == "admin-unauthorised"


def enrol(public, coordinator, site, token):
    enrolment = site.enrolment(token)
    fields = {
        "invite_token": enrolment.invite_token,
        "site": enrolment.site,
        "site_public_pem": enrolment.site_public_pem,
        "node_public_openssh": enrolment.node_public_openssh,
        "statement": enrolment.statement.decode(),
    }
    return public.post("/v1/auricle/enrol", json=fields)


@pytest.mark.parametrize("approve", [True, False])
def test_a_site_enrols_and_is_revoked(home, coordinator, public, admin, approve):
    identity = Identity.load(home.identity_file).public
    site = FakeSite("clinic", identity)
    invite = admin.post("/admin/invites", json={"site": "clinic", "approve": approve})
    assert invite.status_code == 201
    token = token_of(invite.content, identity)

    reply = enrol(public, coordinator, site, token)
    assert reply.json() == {"coordinator_public_pem": identity.public_pem, "approved": approve}
    if not approve:
        listed = [s for s in admin.get("/admin/sites").json() if s["site"] == "clinic"]
        assert [(s["active"], s["approved"], s["revoked"]) for s in listed][-1:] == [
            (False, False, False)
        ]
        approved = admin.post("/admin/sites/clinic/approve")
        assert approved.json() == {"key_id": site.identity.public.key_id}
    overview = [s for s in admin.get("/admin/sites").json() if s["site"] == "clinic"]
    assert [(s["active"], s["online"]) for s in overview][-1:] == [(True, False)]

    other = enrol(public, coordinator, FakeSite("clinic", identity), token)
    assert (other.status_code, other.json()["code"]) == (403, "invite-used")

    assert admin.post("/admin/sites/clinic/revoke").status_code == 204
    overview = [s for s in admin.get("/admin/sites").json() if s["site"] == "clinic"]
    assert [(s["active"], s["revoked"]) for s in overview][-1:] == [(False, True)]


@pytest.mark.parametrize(
    "body", [b"", b"{}", b"[1]", b"not json", b'{"site": 1}', b"\x80\x04N.", b"[" * 60_000]
)
@pytest.mark.parametrize("path", ["/v1/auricle/enrol", "/v1/auricle/rotate"])
def test_nonsense_from_outside_is_refused(public, path, body):
    response = public.post(path, content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)


@pytest.mark.parametrize("site", ['"a"', '"\\ud800"'], ids=["incomplete", "surrogate"])
def test_a_malformed_enrolment_is_answered_without_what_it_said(public, site):
    body = f'{{"invite_token": "secret", "site": {site}}}'.encode()
    headers = {"Content-Type": "application/json"}
    response = public.post("/v1/auricle/enrol", content=body, headers=headers)
    assert response.status_code == 422
    assert b"secret" not in response.content


def test_oversized_bodies_are_cut_off(public):
    for path in ("/v1/auricle/enrol", "/v1/auricle/rotate"):
        assert public.post(path, content=b"x" * 70_000).status_code == 413

    def chunks():
        for _ in range(100):
            yield b"x" * 1000

    response = public.post("/v1/auricle/enrol", content=chunks())
    assert response.status_code >= 400


def test_admin_errors_say_what_to_do(admin):
    unknown = admin.get("/admin/jobs/nowhere")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "job-unknown")
    faulty = admin.post("/admin/jobs", json={"purpose": "p"})
    assert (faulty.status_code, faulty.json()["code"]) == (400, "request-invalid")
    assert faulty.json()["remedy"]


def test_admin_shows_the_ledger(admin):
    ledger = admin.get("/admin/ledger").json()
    assert ledger["size"] == len(ledger["entries"])
    assert (
        admin.get("/admin/ledger", params={"start": 1, "end": 2}).json()["entries"]
        == (ledger["entries"][1:2])
    )


def test_the_system_does_not_trust_the_listener_without_its_ca(coordinator):
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://localhost:{coordinator.public_port}/health", trust_env=False)


def test_a_second_coordinator_on_the_same_ports_is_refused(tmp_path, coordinator):
    settings = CoordinatorSettings(
        public_host="127.0.0.1", public_port=coordinator.public_port, admin_port=0
    )
    home = CoordinatorHome.create(tmp_path, settings, datetime.datetime.now(datetime.UTC))
    with pytest.raises(CoordinatorError) as caught:
        Coordinator(home, SmallArtifacts())
    assert caught.value.code == "port-in-use"


def test_a_second_coordinator_on_the_same_database_is_refused(tmp_path, home, coordinator):
    """Another home with other ports, and its own keys, but this database."""
    settings = dataclasses.replace(SETTINGS, database_url=home.database_url(home.settings()))
    other = CoordinatorHome.create(tmp_path, settings, datetime.datetime.now(datetime.UTC))
    with pytest.raises(CoordinatorError) as caught:
        Coordinator(other, SmallArtifacts())
    assert caught.value.code == "coordinator-running"


def test_a_coordinator_whose_lease_was_taken_stops(tmp_path):
    home = CoordinatorHome.create(tmp_path, SETTINGS, datetime.datetime.now(datetime.UTC))
    running = Coordinator(home, SmallArtifacts())
    running.start()
    engine = open_engine(home.database_url(home.settings()))
    with writing(engine) as session:
        session.get_one(LeaseRow, 1).token += 1
    engine.dispose()
    assert running.wait(timeout_s=30)
    with pytest.raises(CoordinatorError) as caught:
        running.stop()
    assert caught.value.code == "lease-lost"
