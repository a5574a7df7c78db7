"""The service as a whole: what each port exposes, and that revocation bites."""

from __future__ import annotations

import datetime
import ssl
import stat

import httpx
import pytest

from coordinator.errors import CoordinatorError
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.service import Coordinator
from privacy.signing import Identity
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
    print(response.status_code, response.text)
    assert response.status_code == 401


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/v1/control/start-run", "/health"])
def test_admin_port_serves_no_flower_api(admin, path):
    assert admin.post(path).status_code == 404


@pytest.mark.parametrize("token", ["-", "wrong"])
def test_admin_needs_the_token(admin, token):
    response = admin.get("/admin/sites", headers={"Authorization": f"Bearer {token}"})
    assert response.status_code == 401
    assert response.json()["code"] == "admin-unauthorised"
