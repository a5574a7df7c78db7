"""Key rotation at the coordinator: the old key vouches once, and signs nothing after."""

from __future__ import annotations

import pytest
import rfc8785

from coordinator.errors import EnrolmentError
from coordinator.job import JobLoop
from coordinator.rotation import ROTATION_TYPE, Rotation
from coordinator.status import job_status
from privacy.signing import Identity, seal_statement
from tests.coordinator.fakes import FakeSite, Federation, StepLink, request, token_of


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


def rotation(who, successor, *, present=None, prover=None, name=None, **changes) -> Rotation:
    present = present or who.identity
    fields = {
        "site": name or who.name,
        "key_id": present.public.key_id,
        "public_pem": successor.public.public_pem,
    }
    exchange = rfc8785.dumps(fields | changes)
    return Rotation(
        fields["site"],
        successor.public.public_pem,
        seal_statement(exchange, ROTATION_TYPE, present),
        seal_statement(exchange, ROTATION_TYPE, prover or successor),
    )


def refusal(federation, wanted) -> str:
    with pytest.raises(EnrolmentError) as caught:
        federation.operations.rotate(wanted)
    return caught.value.code


def test_a_job_goes_on_under_the_new_key_and_the_old_one_is_refused(federation):
    """North rotates after round 1; what it signs with its old key in round 2 does not count."""
    north, successor = federation.sites["north"], Identity.generate()
    old = north.identity
    link = StepLink(federation.sites)
    job = federation.operations.submit(request(rounds=4, quorum=2))
    loop = JobLoop(job, federation.tools, link)
    while federation.tools.jobs.load(job).rounds_done < 1:
        loop.step()
        federation.clock.wait(0.05)
    wanted = rotation(north, successor)
    federation.operations.rotate(wanted)
    while federation.tools.jobs.load(job).rounds_done < 2:
        loop.step()
        federation.clock.wait(0.05)
    north.identity = successor
    while not loop.step():
        federation.clock.wait(0.05)
    status = job_status(federation.engine, job, ())
    assert status.state == "released"
    by_round = {one.number: one for one in status.latest_rounds}
    assert by_round[2].refused == {"north": "key-retired"}
    # Round 3 was answered already when north got to use its new key.
    assert by_round[3].refused == {"north": "key-retired"}
    assert by_round[4].admitted == ("east", "north", "west")
    overview = {site.site: site for site in federation.operations.sites()}
    assert overview["north"].quarantine_code is None
    assert overview["north"].key_id == successor.public.key_id
    told = [e for e in federation.tools.journal.ledger.entries() if e.kind == "site.key-rotated"]
    assert [dict(e.fields) | {"event": 0} for e in told] == [
        {
            "site": "north",
            "old_key_id": old.public.key_id,
            "key_id": successor.public.key_id,
            "event": 0,
        }
    ]


def test_the_same_request_again_changes_nothing(federation):
    wanted = rotation(federation.sites["north"], Identity.generate())
    assert federation.operations.rotate(wanted) == federation.operations.rotate(wanted)
    kinds = [entry.kind for entry in federation.tools.journal.ledger.entries()]
    assert kinds.count("site.key-rotated") == 1


def test_a_rotation_cannot_be_undone_by_replaying_it(federation):
    north = federation.sites["north"]
    first, second = Identity.generate(), Identity.generate()
    once = rotation(north, first)
    federation.operations.rotate(once)
    federation.operations.rotate(rotation(north, second, present=first))
    assert refusal(federation, once) == "proof-invalid"
    back = rotation(north, north.identity, present=second)
    assert refusal(federation, back) == "key-in-use"
    assert federation.tools.registry.active()["north"].identity == second.public


def test_only_the_present_key_vouches_and_the_new_one_must_be_held(federation):
    north, west = federation.sites["north"], federation.sites["west"]
    new = Identity.generate()
    assert refusal(federation, rotation(north, new, present=west.identity)) == "proof-invalid"
    assert refusal(federation, rotation(north, new, prover=north.identity)) == "proof-invalid"
    assert refusal(federation, rotation(north, new, name="west")) == "proof-invalid"
    assert refusal(federation, rotation(north, new, site="west")) == "proof-invalid"
    assert refusal(federation, rotation(north, west.identity)) == "key-in-use"
    nonsense = Rotation("north", "no key", b"", b"")
    assert refusal(federation, nonsense) == "site-key-invalid"
    assert federation.tools.registry.active()["north"].identity == north.identity.public


def test_a_revoked_site_rotates_nothing(federation):
    federation.operations.revoke("north")
    wanted = rotation(federation.sites["north"], Identity.generate())
    assert refusal(federation, wanted) == "site-unknown"


def test_a_retired_key_enrols_no_more(federation):
    north = federation.sites["north"]
    federation.operations.rotate(rotation(north, Identity.generate()))
    south = FakeSite("south", federation.identity.public)
    south.identity = north.identity
    token = token_of(federation.operations.invite("south", 60), federation.identity.public)
    with pytest.raises(EnrolmentError) as caught:
        federation.operations.enrol(south.enrolment(token))
    assert caught.value.code == "key-in-use"
