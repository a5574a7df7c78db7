"""A release is tried on the site's own recordings first; a refused one is kept, and not served."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import cast

import pytest
from torch import Tensor

from client_node.errors import REFUSAL_CODES, refusal_code
from client_node.model_store import ModelStore, VerifiedRelease
from client_node.release_canary import (
    MOST_RECORDINGS,
    CanaryRecording,
    CanarySet,
    CanarySetError,
    ReleaseCanary,
    forget_subject,
    is_looping,
    judge,
)
from client_node.release_duty import CanaryError
from model_core.transcribe import Transcriber, Transcript
from tests.client_node.harness import Site
from tests.client_node.test_model_store import BASE, COORDINATOR, stage

TEXTS = ("start metformin today", "her lisinopril is new")


def chosen(max_wer: float = 0.5, margin: float = 0.1) -> CanarySet:
    recordings = tuple(CanaryRecording("a.wav", "0" * 64, text, "p1") for text in TEXTS)
    return CanarySet(max_wer, margin, recordings)


def finding(
    heard: tuple[str, str], before: tuple[str, str] = TEXTS, max_wer: float = 0.5
) -> str | None:
    try:
        judge(chosen(max_wer), heard, before)
    except CanaryError as error:
        return error.finding
    return None


def test_what_is_as_good_as_before_passes() -> None:
    assert finding(TEXTS) is None
    assert finding(("start metformin", "her lisinopril is new"), ("start", "lisinopril")) is None


@pytest.mark.parametrize(
    ("heard", "before", "expected"),
    [
        (("", TEXTS[1]), TEXTS, "canary-empty"),
        (("yes " * 40, TEXTS[1]), TEXTS, "canary-looping"),
        (("wrong words here", "all of it false"), TEXTS, "canary-wer"),
        (("start metformin", TEXTS[1]), TEXTS, "canary-worse"),
    ],
)
def test_each_fault_is_found_by_its_name(
    heard: tuple[str, str], before: tuple[str, str], expected: str
) -> None:
    assert finding(heard, before) == expected


def test_silence_that_the_present_model_hears_as_silence_is_no_fault() -> None:
    assert finding((TEXTS[0], ""), (TEXTS[0], ""), max_wer=1.0) is None


@pytest.mark.parametrize(
    ("text", "looping"),
    [
        ("thank you for watching " * 5, True),
        ("zero zero zero zero five", False),
        ("the patient takes ten milligrams of metformin in the morning and in the evening", False),
        ("", False),
    ],
)
def test_looping_is_told_from_speech(text: str, looping: bool) -> None:
    assert is_looping(text) is looping


class Hearing:
    """Stands for model loading: an adapter's bytes are what its model hears in every recording."""

    def __call__(self, adapter: bytes | None) -> Transcriber:
        text = "one" if adapter is None else adapter.decode()

        class Named:
            def transcribe_many(self, clips: list[Tensor]) -> list[Transcript]:
                return [Transcript(text, (), 1.0) for _ in clips]

        return cast("Transcriber", Named())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "releases", [COORDINATOR.public], BASE)


def canary_of(site: Site, store: ModelStore, text: str = "one") -> ReleaseCanary:
    site.record("p1", text, name="canary", split="heldout")
    (clip,) = site.home.root.glob("canary-*.wav")
    manifest = site.home.root / "canary.jsonl"
    line = {"audio": clip.name, "text": text, "subject": "p1"}
    manifest.write_text(json.dumps(line))
    CanarySet.from_manifest(manifest, 0.5, 0.0).save(site.home.canary)
    return ReleaseCanary(Hearing(), store.active, site.home.canary)


def test_a_worse_release_is_kept_with_the_reason_and_the_present_one_goes_on(
    site: Site, store: ModelStore
) -> None:
    canary = canary_of(site, store)
    stage(store, "r1", b"one")
    store.activate("r1", canary)
    stage(store, "r2", b"wrong", tree_size=11)
    with pytest.raises(CanaryError):
        store.activate("r2", canary)
    assert store.active_id == "r1"
    assert store.load("r2").adapter == b"wrong"
    by_name = {one.release: one for one in store.releases()}
    assert by_name["r1"].standing == "active"
    assert by_name["r2"].standing == "refused"
    latest = by_name["r2"].latest
    assert latest is not None
    assert latest.code == "canary-wer"
    assert "1.000" in latest.reason
    assert store.activate("r2", by_operator=True).adapter == b"wrong"  # the operator may insist
    assert {one.release: one.standing for one in store.releases()} == {
        "r1": "superseded",
        "r2": "active",
    }


@pytest.mark.parametrize("fault", ["gone", "changed"])
def test_a_canary_that_cannot_be_run_refuses(site: Site, store: ModelStore, fault: str) -> None:
    canary = canary_of(site, store)
    (clip,) = site.home.root.glob("canary-*.wav")
    if fault == "gone":
        clip.unlink()
    else:
        clip.write_bytes(clip.read_bytes() + b"\0\0")
    stage(store, "r1", b"one")
    with pytest.raises(CanaryError) as caught:
        store.activate("r1", canary)
    assert caught.value.finding == {"gone": "canary-unreadable", "changed": "canary-changed"}[fault]
    assert store.active_id is None


def test_a_file_that_is_no_set_refuses_too(site: Site, store: ModelStore) -> None:
    canary = canary_of(site, store)
    site.home.canary.write_text("{}")
    stage(store, "r1", b"one")
    with pytest.raises(CanarySetError):
        store.activate("r1", canary)
    assert store.active_id is None


def test_without_a_set_a_release_must_only_fit(store: ModelStore, tmp_path: Path) -> None:
    stage(store, "r1", b"anything")
    store.activate("r1", ReleaseCanary(Hearing(), store.active, tmp_path / "none.json"))
    assert store.active_id == "r1"


def test_withdrawn_consent_leaves_the_set(site: Site, store: ModelStore) -> None:
    canary_of(site, store)
    two = CanarySet.load(site.home.canary)
    assert two is not None
    other = dataclasses.replace(two.recordings[0], subject="p2")
    dataclasses.replace(two, recordings=(*two.recordings, other)).save(site.home.canary)
    assert forget_subject(site.home.canary, "p1") == 1
    left = CanarySet.load(site.home.canary)
    assert left is not None
    assert [one.subject for one in left.recordings] == ["p2"]
    assert forget_subject(site.home.canary, "p2") == 1
    assert CanarySet.load(site.home.canary) is None
    assert forget_subject(site.home.canary, "p2") == 0


@pytest.mark.parametrize("fault", ["wordless", "many", "limits", "consent"])
def test_a_set_that_could_judge_nothing_is_not_taken(site: Site, fault: str) -> None:
    site.record("p1", "words", name="clip")
    (clip,) = site.home.root.glob("clip-*.wav")
    row = {"audio": clip.name, "text": "words", "subject": "p1"}
    rows = [row]
    if fault == "wordless":
        rows = [row | {"text": "..."}]
    elif fault == "consent":
        rows = [row | {"consent": False}]
    elif fault == "many":
        copies = [clip.with_name(f"copy-{n}.wav") for n in range(MOST_RECORDINGS + 1)]
        for copy in copies:
            shutil.copy(clip, copy)
        rows = [row | {"audio": copy.name} for copy in copies]
    manifest = site.home.root / "rows.jsonl"
    manifest.write_text("\n".join(json.dumps(one) for one in rows))
    with pytest.raises(CanarySetError):
        CanarySet.from_manifest(manifest, 0.0 if fault == "limits" else 0.5, 0.0)


def test_no_finding_of_a_canary_may_leave_the_site() -> None:
    findings = ("empty", "looping", "wer", "worse", "changed", "unreadable")
    assert not {f"canary-{one}" for one in findings} & REFUSAL_CODES
    with pytest.raises(CanaryError) as caught:
        judge(chosen(), ("", ""), TEXTS)
    assert (caught.value.code, refusal_code(caught.value)) == ("release-canary",) * 2


def test_the_present_model_is_asked_anew_at_each_trial(site: Site, store: ModelStore) -> None:
    """A release is measured against what serves when it comes, not when the service started."""
    canary = canary_of(site, store, text="two")
    loads: list[bytes | None] = []

    def load(adapter: bytes | None) -> Transcriber:
        loads.append(adapter)
        return Hearing()(adapter)

    canary = dataclasses.replace(canary, load=load)
    for number, heard in enumerate((b"two", b"two ")):
        stage(store, f"r{number}", heard, tree_size=10 + number)
        store.activate(f"r{number}", canary)
    assert loads == [b"two", None, b"two ", b"two"]
    assert isinstance(store.active(), VerifiedRelease)
