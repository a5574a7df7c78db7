"""Names that are paths, hold NUL, or look like others: refused wherever a name comes in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import rfc8785

from client_node.model_store import ModelStore
from coordinator.errors import EnrolmentError
from model_core.base import SpeechBase
from privacy.parcel import Parcel
from privacy.plan import RoundPlan
from privacy.signing import Identity, payload_type_of, seal_statement
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.coordinator.fakes import FakeSite, Federation, token_of

pytestmark = pytest.mark.faults

NAMES = {
    "parent folder": "../north",
    "absolute path": "/etc/passwd",
    "backslashes": "..\\north",
    "dots alone": "..",
    "NUL": "north\0",
    "newline": "north\n",
    "escape sequence": "\x1b[2Jnorth",
    "another script": "n\u043erth",  # CYRILLIC SMALL LETTER O
    "full width": "\uff4e\uff4frth",
    "ligature": "\ufb01nland",
    "right to left": "north\u202e",
    "zero width": "no\u200brth",
    "combining": "nor\u0301th",
    "upper case": "NORTH",
    "space": " north",
    "nothing": "",
    "too long": "n" * 300,
}
named = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("coordinator"), ("north",))


@named
def test_no_invite_is_made_out_to_a_name_that_is_none(federation: Federation, name: str) -> None:
    with pytest.raises(EnrolmentError) as caught:
        federation.operations.invite(name, 60)
    assert caught.value.code == "site-name-invalid"


@named
def test_no_site_enrols_under_a_name_that_is_none(federation: Federation, name: str) -> None:
    """The site signs the odd name itself; the invite is for another."""
    public = federation.identity.public
    site = FakeSite("south", public)
    token = token_of(federation.operations.invite("south", 60), public)
    before = {one.site for one in federation.operations.sites()}
    site.name = name
    with pytest.raises(EnrolmentError) as caught:
        federation.operations.enrol(site.enrolment(token))
    assert caught.value.code == "invite-site-mismatch"
    assert {one.site for one in federation.operations.sites()} == before


def signed(cls: type, fields: object, coordinator: Coordinator) -> bytes:
    return seal_statement(rfc8785.dumps(fields), payload_type_of(cls), coordinator.identity)


@pytest.fixture(scope="module")
def coordinator() -> Coordinator:
    return Coordinator(Identity.generate())


@pytest.fixture(scope="module")
def one_site(
    tmp_path_factory: pytest.TempPathFactory, nano: SpeechBase, coordinator: Coordinator
) -> Iterator[Site]:
    """One site for all names: none of them may change anything there."""
    made = Site(tmp_path_factory.mktemp("site") / "north", nano, coordinator)
    yield made
    made.close()


def places(root: Path) -> set[Path]:
    """Every folder below `root`, and every file that is not of a database, receipt or log."""
    kept = ("auricle.db", "receipts", "logs")
    return {path for path in root.rglob("*") if not any(part in str(path) for part in kept)}


@named
def test_no_job_order_or_release_of_a_name_that_is_none_is_taken(
    one_site: Site, coordinator: Coordinator, nano: SpeechBase, name: str
) -> None:
    plan, basis = make_plan(nano)
    agent = one_site.agent(CountingTrainer())

    def refusal(parcel: Parcel) -> str:
        return one_site.answer(agent.handle(parcel)).code

    outside = one_site.home.root.parent
    before = places(outside)
    fields = json.loads(json.dumps(dataclasses.asdict(plan))) | {"job": name}
    statement = seal_statement(
        rfc8785.dumps(fields), payload_type_of(RoundPlan), coordinator.identity
    )
    assert refusal(Parcel("prepare", statement, basis)) == "plan-invalid"
    assert refusal(coordinator.order(plan, 1, job=name)) == "parcel-invalid"
    assert refusal(coordinator.release(plan, b"adapter", release=name)) == "release-name"
    assert refusal(coordinator.release(plan, b"adapter", job=name)) == "parcel-invalid"
    models = ModelStore(one_site.home.releases, (coordinator.identity.public,), nano.base_sha256)
    assert models.active_id is None
    assert places(outside) == before
    assert agent.failure is None
    assert one_site.audit().valid
