"""Only releases that verify may serve (I3): attacks on the wire, on disk, and crashes between."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_node.model_store import (
    ADAPTER_NAME,
    MANIFEST_NAME,
    POINTER_NAME,
    ModelStore,
    ReleaseError,
)
from client_node.release_state import Withdrawn
from privacy.errors import SignatureError
from privacy.parcel import ReleaseManifest
from privacy.signing import Identity, open_statement, payload_type_of, seal

BASE = "ba" * 32
COORDINATOR = Identity.generate()


def manifest(release: str, adapter: bytes, **changes: object) -> ReleaseManifest:
    made = ReleaseManifest(
        release=release,
        job="0a0b",
        rounds=3,
        base_sha256=BASE,
        plan_sha256="11" * 32,
        adapter_sha256=hashlib.sha256(adapter).hexdigest(),
        parent=None,
        tree_head="22" * 32,
        tree_size=10,
        issued_at="2026-01-01T00:00:00Z",
        epsilon_loc=4.0,
        epsilon_sec=2.0,
        delta=1e-6,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def stage(store: ModelStore, release: str, adapter: bytes = b"adapter", **changes: object) -> None:
    store.stage(seal(manifest(release, adapter, **changes), COORDINATOR), adapter)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "releases", [COORDINATOR.public], BASE)


def reopened(store: ModelStore, tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "releases", [COORDINATOR.public], BASE)


def test_staged_release_does_not_serve_until_activated(store: ModelStore, tmp_path: Path) -> None:
    stage(store, "r1", b"weights")
    assert store.active() is None
    assert store.activate("r1").adapter == b"weights"
    after_restart = reopened(store, tmp_path).active()
    assert after_restart is not None
    assert after_restart.manifest.release == "r1"
    assert after_restart.adapter == b"weights"


def test_release_signed_by_another_key_is_refused_and_leaves_nothing(
    store: ModelStore, tmp_path: Path
) -> None:
    forged = seal(manifest("r1", b"x"), Identity.generate())
    with pytest.raises(SignatureError):
        store.stage(forged, b"x")
    assert list((tmp_path / "releases").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "adapter", "code"),
    [
        ({"adapter_sha256": "00" * 32}, b"x", "release-hash"),
        ({"base_sha256": "00" * 32}, b"x", "release-base"),
        ({"release": "../../keys"}, b"x", "release-name"),
        ({"release": "Upper"}, b"x", "release-name"),
        ({"release": POINTER_NAME + "/x"}, b"x", "release-name"),
        ({"release": ""}, b"x", "release-name"),
    ],
)
def test_signed_but_unfit_release_is_refused(
    store: ModelStore, tmp_path: Path, changes: dict[str, str], adapter: bytes, code: str
) -> None:
    statement = seal(dataclasses.replace(manifest("r1", adapter), **changes), COORDINATOR)
    with pytest.raises(ReleaseError) as caught:
        store.stage(statement, adapter)
    assert caught.value.code == code
    assert list((tmp_path / "releases").iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255), which=st.booleans())
def test_any_byte_changed_on_disk_after_activation_is_refused_at_the_next_load(
    tmp_path_factory: pytest.TempPathFactory, position: int, flip: int, which: bool
) -> None:
    folder = tmp_path_factory.mktemp("releases")
    store = ModelStore(folder, [COORDINATOR.public], BASE)
    stage(store, "r1", b"weights" * 40)
    store.activate("r1")
    path = folder / "r1" / (ADAPTER_NAME if which else MANIFEST_NAME)
    data = bytearray(path.read_bytes())
    before = store.load("r1")
    data[position % len(data)] ^= flip
    path.write_bytes(data)
    try:
        after = store.active()
    except (ReleaseError, SignatureError):
        return
    # Only a byte that carries no meaning (an unsigned hint of the envelope) may pass.
    assert not which
    assert after == before


def test_release_copied_under_another_name_is_refused(store: ModelStore, tmp_path: Path) -> None:
    stage(store, "r1", b"one", tree_size=1)
    stage(store, "r2", b"two", tree_size=2)
    store.activate("r2")
    releases = tmp_path / "releases"
    for name in (ADAPTER_NAME, MANIFEST_NAME):
        (releases / "r2" / name).write_bytes((releases / "r1" / name).read_bytes())
    with pytest.raises(ReleaseError):
        store.active()


def test_older_release_cannot_replace_a_newer_one_but_rollback_can(store: ModelStore) -> None:
    stage(store, "r1", b"one", tree_size=5)
    stage(store, "r2", b"two", tree_size=9)
    store.activate("r1")
    store.activate("r2")
    with pytest.raises(ReleaseError) as caught:
        store.activate("r1")
    assert caught.value.code == "release-older"
    restored = store.rollback()
    assert restored is not None
    assert restored.manifest.release == "r1"
    with pytest.raises(ReleaseError) as refused:
        store.activate("r2")
    assert refused.value.code == "release-rolled-back"
    assert store.rollback() is None
    assert store.active() is None
    with pytest.raises(ReleaseError, match="nothing to roll back"):
        store.rollback()


def standings(store: ModelStore) -> dict[str, str]:
    return {one.release: one.standing for one in store.releases()}


def test_a_withdrawn_release_gives_way_to_what_served_before_and_never_returns(
    store: ModelStore, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        stage(store, f"r{number}", b"one", tree_size=number)
        store.activate(f"r{number}")
    assert store.withdraw("r2", "worse") == Withdrawn(was_serving=False, serves="r3")
    assert store.withdraw("r3", "worse") == Withdrawn(was_serving=True, serves="r1")
    again = reopened(store, tmp_path)
    assert again.active_id == "r1"
    for withdrawn in ("r2", "r3"):
        with pytest.raises(ReleaseError) as caught:
            again.activate(withdrawn, by_operator=True)
        assert caught.value.code == "release-withdrawn"
    assert again.rollback() is None  # nothing withdrawn is in the way back
    assert standings(again) == {"r1": "rolled-back", "r2": "withdrawn", "r3": "withdrawn"}
    assert again.withdraw("r1", "worse") == Withdrawn(was_serving=False, serves=None)


def test_a_withdrawal_passes_over_what_no_longer_verifies(
    store: ModelStore, tmp_path: Path
) -> None:
    for number in (1, 2, 3):
        stage(store, f"r{number}", b"one", tree_size=number)
        store.activate(f"r{number}")
    (tmp_path / "releases" / "r2" / ADAPTER_NAME).write_bytes(b"altered")
    assert store.withdraw("r3", "worse").serves == "r1"
    (tmp_path / "releases" / "r1" / ADAPTER_NAME).write_bytes(b"altered")
    assert store.withdraw("r1", "worse") == Withdrawn(was_serving=True, serves=None)


def test_a_withdrawal_of_what_never_came_is_kept_for_when_it_comes(store: ModelStore) -> None:
    assert store.withdraw("r1", "worse") == Withdrawn(was_serving=False, serves=None)
    stage(store, "r1")
    with pytest.raises(ReleaseError) as caught:
        store.activate("r1")
    assert caught.value.code == "release-withdrawn"
    assert standings(store) == {"r1": "withdrawn"}


def test_a_release_withdrawn_during_its_own_canary_does_not_serve(store: ModelStore) -> None:
    stage(store, "r1")
    with pytest.raises(ReleaseError) as caught:
        store.activate("r1", canary=lambda _: store.withdraw("r1", "worse") and None)
    assert caught.value.code == "release-withdrawn"
    assert store.active_id is None


def test_the_operator_may_take_back_what_was_rolled_back(store: ModelStore) -> None:
    stage(store, "r1")
    store.activate("r1")
    store.rollback()
    with pytest.raises(ReleaseError):
        store.activate("r1")
    assert store.activate("r1", by_operator=True).manifest.release == "r1"
    assert [event.what for event in store.history()] == [
        *("staged", "activated", "rolled-back", "activated")
    ]


def test_a_release_that_replaces_another_parent_than_the_one_held_is_refused(
    store: ModelStore,
) -> None:
    parent = manifest("r1", b"one")
    store.stage(seal(parent, COORDINATOR), b"one")
    kind, trusted = payload_type_of(ReleaseManifest), [COORDINATOR.public]
    signed = open_statement(seal(parent, COORDINATOR), kind, trusted)
    digest = hashlib.sha256(signed).hexdigest()
    stage(store, "r2", b"two", parent="r1", parent_sha256=digest)
    stage(store, "r3", b"three", parent="not-held", parent_sha256="00" * 32)
    with pytest.raises(ReleaseError) as caught:
        stage(store, "r4", b"four", parent="r1", parent_sha256="00" * 32)
    assert caught.value.code == "release-parent"
    assert "r4" not in standings(store)


def test_a_pointer_of_an_earlier_version_is_read(store: ModelStore, tmp_path: Path) -> None:
    for number in (1, 2):
        stage(store, f"r{number}", b"one", tree_size=number)
    pointer = tmp_path / "releases" / POINTER_NAME
    fields = {"active": "r1", "previous": [None], "rolled_back": ["r2"]}
    pointer.write_text(json.dumps(fields))
    assert standings(store) == {"r1": "active", "r2": "rolled-back"}
    with pytest.raises(ReleaseError) as caught:
        store.activate("r2")
    assert caught.value.code == "release-rolled-back"


@settings(max_examples=20, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["activate", "rollback", "withdraw"]), st.integers(1, 4)),
        max_size=14,
    )
)
def test_whatever_happens_a_withdrawn_release_never_serves(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    store = ModelStore(tmp_path_factory.mktemp("r"), [COORDINATOR.public], BASE)
    for number in (1, 2, 3, 4):
        stage(store, f"r{number}", b"one", tree_size=number)
    withdrawn: set[str] = set()
    for verb, number in steps:
        name = f"r{number}"
        before = store.active_id
        with contextlib.suppress(ReleaseError):
            if verb == "activate":
                store.activate(name, by_operator=True)
                assert name not in withdrawn
            elif verb == "rollback":
                store.rollback()
            else:
                store.withdraw(name, "worse")
                withdrawn.add(name)
                assert before == name or store.active_id == before
        assert store.active_id not in withdrawn
        assert store.active_id is None or store.active() is not None


def test_refused_canary_leaves_the_serving_release(store: ModelStore) -> None:
    stage(store, "r1", b"one")
    stage(store, "r2", b"two", tree_size=11)
    store.activate("r1")

    def refuse(_: object) -> None:
        raise ReleaseError("worse on the canary set", remedy="keep the present one")

    with pytest.raises(ReleaseError, match="canary"):
        store.activate("r2", canary=refuse)
    assert store.active_id == "r1"


def test_same_name_with_other_content_is_a_conflict_and_the_first_stays(store: ModelStore) -> None:
    stage(store, "r1", b"one")
    stage(store, "r1", b"one")
    with pytest.raises(ReleaseError) as caught:
        stage(store, "r1", b"two")
    assert caught.value.code == "release-conflict"
    assert store.load("r1").adapter == b"one"


def test_crash_before_the_pointer_moves_keeps_the_old_release(
    store: ModelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage(store, "r1", b"one")
    stage(store, "r2", b"two", tree_size=11)
    store.activate("r1")

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            store.activate("r2")
    assert reopened(store, tmp_path).active_id == "r1"


def test_pointer_that_is_not_ours_stops_service_rather_than_guessing(
    store: ModelStore, tmp_path: Path
) -> None:
    pointer = tmp_path / "releases" / POINTER_NAME
    pointer.write_text(json.dumps({"active": "../elsewhere", "previous": [], "rolled_back": []}))
    with pytest.raises(ReleaseError):
        store.active()
    pointer.write_text("not json")
    with pytest.raises(ReleaseError):
        store.active()


def test_files_are_private_to_the_account(store: ModelStore, tmp_path: Path) -> None:
    stage(store, "r1", b"one")
    store.activate("r1")
    for path in (tmp_path / "releases").rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
