"""`auricle site rotate-key` against a real coordinator over TLS, interrupted at every step."""

from __future__ import annotations

import datetime

import pytest

from client_node import enrol
from client_node.enrol import join
from client_node.errors import SiteError
from client_node.home import SiteHome, SiteSettings
from client_node.keys import create_keys, load_keys
from client_node.policy import default_policy
from client_node.rotate import rotate_key
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.service import Coordinator
from deploy.ledgers import open_ledger, open_private_log, verify_home
from tests.client_node.harness import TickingClock
from tests.coordinator.fakes import SmallArtifacts

pytestmark = [
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]
SETTINGS = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)


class Interrupted(Exception):  # noqa: N818 - what a kill looks like from inside
    """Raised in the place of a kill."""


@pytest.fixture
def coordinator(tmp_path):
    now = datetime.datetime.now(datetime.UTC)
    running = Coordinator(
        CoordinatorHome.create(tmp_path / "coordinator", SETTINGS, now), SmallArtifacts()
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture
def home(tmp_path, coordinator):
    made = SiteHome(tmp_path / "north")
    made.create()
    create_keys(made)
    default_policy(made.policy)
    SiteSettings(site="north", base_folder="base").save(made.settings)
    invite = tmp_path / "invite"
    invite.write_bytes(coordinator.operations.invite("north", 600, approve=True))
    join(made, invite, datetime.datetime.now(datetime.UTC))
    open_ledger(made.root).append("event", {"number": 1})
    open_private_log(made.root).append("event", {"number": 1})
    return made


def key_at_coordinator(coordinator) -> str:
    (site,) = coordinator.operations.sites()
    return site.key_id


def rounds_of_interruptions(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run the command, ended one step later each time, until it is through; how often it was."""
    steps = 0

    def step(call):
        def counted(*arguments, **named):
            nonlocal steps
            result = call(*arguments, **named)
            steps += 1
            if steps == allowed:
                raise Interrupted
            return result

        return counted

    clock = step(TickingClock())
    monkeypatch.setattr("client_node.rotate.post_json", step(enrol.post_json))
    monkeypatch.setattr("client_node.rotate._settle", step(lambda _: None))
    for allowed in range(1, 50):
        steps = 0
        try:
            rotate_key(home, clock)
        except Interrupted:
            continue
        return allowed
    raise AssertionError("the rotation never ended")


def test_killed_anywhere_the_command_goes_on_and_every_record_agrees(
    home, coordinator, monkeypatch
):
    old = load_keys(home).identity.public
    # The last interruption is after the key file is in its place: from there on it is a new one.
    assert rounds_of_interruptions(home, monkeypatch) > 3
    new = load_keys(home).identity.public
    assert new != old
    assert not home.next_site_key.exists()
    assert key_at_coordinator(coordinator) == new.key_id
    report, private = verify_home(home.root)
    assert report.valid, report.reason
    assert private.valid, private.reason
    rotated = [e for e in open_ledger(home.root).entries() if e.kind == "key.rotated"]
    told = [
        e
        for e in coordinator.operations.tools.journal.ledger.entries()
        if e.kind == "site.key-rotated"
    ]
    ours = [(e.fields["old_key_id"], e.fields["key_id"]) for e in rotated]
    theirs = [(e.fields["old_key_id"], e.fields["key_id"]) for e in told]
    assert ours == theirs
    assert (ours[0][0], ours[-1][1]) == (old.key_id, new.key_id)


def test_a_refused_rotation_leaves_the_present_key(home, coordinator):
    old = load_keys(home).identity.public
    coordinator.operations.revoke("north")
    with pytest.raises(SiteError, match="site-unknown") as caught:
        rotate_key(home, TickingClock())
    assert caught.value.code == "rotation-refused"
    assert load_keys(home).identity.public == old
    open_ledger(home.root).append("event", {"number": 2})
