"""Nothing of a recording leaves: canaries planted in data must not appear in any byte that leaves,
in any log, or in any text at the boundary (invariant I5)."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from client_node.agent import SiteAgent
from model_core.base import SpeechBase
from privacy.parcel import Parcel
from privacy.signing import Identity
from tests.client_node.harness import Coordinator, Site, make_plan

SUBJECT = "CANARY-SUBJECT-7731"
TEXT = "canary transcript zolpidem ninety milligrams"
FILE = "CANARY-FILE-9902"
WORDS = (SUBJECT, TEXT, FILE)


def needles(site: Site) -> list[bytes]:
    """The canaries as they are, as base64 at every alignment, and hashed."""
    found = [str(site.home.root).encode()]
    for word in WORDS:
        raw = word.encode()
        found.append(raw)
        for pad in range(3):
            # The middle of the base64 of a text is the same wherever it stands, per alignment.
            found.append(base64.b64encode(bytes(pad) + raw)[4:-4])
        found.append(hashlib.sha256(raw).hexdigest().encode())
    store = site.parts().store
    found += [sha.encode() for sha in store.placements()]
    found += [Path(r.path).read_bytes()[44:76] for r in store.recordings()]
    return found


def assert_clean(site: Site, data: list[bytes]) -> None:
    for needle in needles(site):
        assert not any(needle in piece for piece in data)


def left_and_logged(site: Site, replies: list[Parcel]) -> list[bytes]:
    data = [piece for reply in replies for piece in (reply.statement, reply.payload)]
    for folder in (site.home.receipts, site.home.logs):
        data += [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    ledger, _ = site.books()
    return data + [entry.payload for entry in ledger.entries()]


@pytest.fixture
def planted(site: Site) -> Site:
    site.record(SUBJECT, TEXT, name=FILE)
    site.record("other", "take one tablet")
    return site


def everything(agent: SiteAgent, coordinator: Coordinator, nano: SpeechBase) -> list[Parcel]:
    plan, basis = make_plan(nano, sampling_rate=1.0, noise_multiplier=3.0)
    vector = bytes(4 * plan.adapter.size)
    stranger = Coordinator(Identity.generate())
    asked = [
        coordinator.order(plan, 1),
        stranger.prepare(plan, basis),
        coordinator.prepare(plan, basis),
        coordinator.order(plan, 1, vector),
        coordinator.order(plan, 1, vector),
        coordinator.order(plan, 99),
        coordinator.release(plan, b"not an adapter", adapter_sha256="0" * 64),
        Parcel("round", b"garbage"),
    ]
    return [agent.handle(parcel) for parcel in asked]


def test_no_canary_in_any_reply_receipt_log_or_ledger(
    planted: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    replies = everything(planted.agent(), coordinator, nano)
    assert [reply.kind for reply in replies].count("update") == 2
    assert_clean(planted, left_and_logged(planted, replies))


@pytest.mark.parametrize("fault", ["audio-gone", "decoder-quotes-the-data"])
def test_no_canary_when_the_data_itself_causes_the_fault(
    planted: Site,
    coordinator: Coordinator,
    nano: SpeechBase,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    agent = planted.agent()
    hidden = needles(planted)

    def quote(path: Path) -> None:
        raise ValueError(f"cannot decode {path} of {SUBJECT}: {TEXT}")

    if fault == "audio-gone":
        for recording in planted.parts().store.recordings():
            Path(recording.path).unlink()
    else:
        monkeypatch.setattr("client_node.features.read_audio", quote)
    replies = everything(agent, coordinator, nano)
    if fault != "audio-gone":
        assert planted.answer(replies[3]).code == "training-failed"
    data = left_and_logged(planted, replies)
    for needle in hidden:
        assert not any(needle in piece for piece in data)


def test_update_is_exactly_the_noisy_sum_and_nothing_more(
    planted: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, _ = make_plan(nano)
    update = everything(planted.agent(), coordinator, nano)[3]
    assert len(update.payload) == 4 * plan.adapter.size


def test_log_takes_codes_and_numbers_only(site: Site) -> None:
    with pytest.raises(TypeError):
        site.log.event("round-done", subject=SUBJECT)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="kebab"):
        site.log.event(TEXT)
    try:
        raise ValueError(TEXT)
    except ValueError as error:
        site.log.fault(error)
    logged = (site.home.logs / "site.log").read_text()
    assert "test_canaries:" in logged
    assert TEXT not in logged


def test_private_files_are_the_accounts_alone(
    planted: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    everything(planted.agent(), coordinator, nano)
    private = ("keys", "receipts", "logs", "features", "auricle.db", "policy.toml", "site.toml")
    for name in private:
        top = planted.home.root / name
        for path in (top, *top.rglob("*")):
            assert path.stat().st_mode & 0o077 == 0, path
