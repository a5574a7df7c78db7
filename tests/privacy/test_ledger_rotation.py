"""A log that is handed on to another key: one history, whoever holds either key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from privacy import ledger_tables as tables
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_entry import KEY_ROTATED, Chain, SignedTreeHead
from privacy.ledger_proof import check_proof, prove_entry, prove_growth
from privacy.ledger_verify import verify_export, verify_with_private
from privacy.private_log import PrivateLog
from privacy.signing import Identity
from privacy.store import writing
from tests.privacy.ledger_support import LOG_ID, opened, ticking

OLD, NEW, STRANGER = Identity.generate(), Identity.generate(), Identity.generate()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    with opened(tmp_path) as engine:
        yield engine


def begun(engine: Engine, entries: int = 3) -> Ledger:
    ledger = Ledger(engine, OLD, LOG_ID, ticking())
    for number in range(entries):
        ledger.append("event", {"number": number})
    return ledger


def code_of(call: object, *arguments: object) -> str:
    with pytest.raises(LedgerError) as caught:
        call(*arguments)
    return caught.value.code


@pytest.mark.parametrize("entries", [3, 300], ids=["short", "long"])
def test_one_history_under_two_keys(engine: Engine, tmp_path: Path, entries: int) -> None:
    """Long: signatures are checked in batches, of which one has entries of both keys."""
    ledger = begun(engine, entries)
    handed = ledger.rotate(NEW, {"why": "yearly"})
    assert (handed.kind, handed.fields["why"]) == (KEY_ROTATED, "yearly")
    ledger.append("event", {"number": entries})
    again = Ledger(engine, NEW, LOG_ID, ticking())
    assert [one.fields.get("number") for one in again.entries()] == [*range(entries), None, entries]
    assert (again.public, again.key_of(entries), again.key_of(entries + 1)) == (
        (NEW.public, OLD.public, NEW.public)
    )
    path = tmp_path / "export.jsonl"
    again.export(path)
    for key in (OLD, NEW):
        report = verify_export(path, [key.public])
        assert (report.valid, report.key_trusted, report.entries) == (True, True, entries + 2)
        assert report.key_id == NEW.public.key_id
    report = verify_export(path, [STRANGER.public])
    assert (report.valid, report.key_trusted) == (False, False)


def test_the_old_key_opens_the_log_no_more_and_writes_nothing(engine: Engine) -> None:
    running, ledger = begun(engine), Ledger(engine, OLD, LOG_ID, ticking())
    ledger.rotate(NEW, {})
    assert code_of(Ledger, engine, OLD, LOG_ID, ticking()) == "ledger-key"
    assert code_of(running.append, "event", {}) == "ledger-key"  # a service that went on
    assert code_of(Ledger, engine, STRANGER, LOG_ID, ticking()) == "ledger-key"
    assert ledger.append("event", {}).index == 4


def test_only_a_rotation_hands_a_log_on(engine: Engine) -> None:
    ledger = begun(engine)
    with pytest.raises(LedgerError):
        ledger.append(KEY_ROTATED, {"public_pem": NEW.public.public_pem})
    assert ledger.size == 3


@pytest.mark.parametrize("thief", [OLD, STRANGER], ids=["the old key", "a stranger"])
def test_entries_of_another_key_after_the_rotation_are_refused(
    engine: Engine, thief: Identity
) -> None:
    ledger = begun(engine)
    ledger.rotate(NEW, {})
    chain = Chain(LOG_ID, OLD.public)
    for entry in ledger.entries():
        chain.open_next(entry.sealed)
    forged = chain.draft("event", {}, "2026-03-02T08:00:00.000000Z", thief)
    chain.extend(forged)
    head = SignedTreeHead.sign(chain.head, forged.at, thief)
    with writing(engine) as session:
        tables.add_entries(session, LOG_ID, forged.index, [forged.sealed], head.sealed)
    with pytest.raises(LedgerError, match="does not verify"):
        Ledger(engine, NEW, LOG_ID, ticking())


def test_a_thief_of_the_log_row_gains_nothing(engine: Engine) -> None:
    begun(engine)
    with writing(engine) as session:
        session.get_one(tables.LogRow, LOG_ID).public_pem = STRANGER.public.public_pem
    with pytest.raises(LedgerError):
        Ledger(engine, OLD, LOG_ID, ticking())


def test_a_rotation_that_does_not_commit_has_not_happened(engine: Engine) -> None:
    ledger = begun(engine)

    def cut(_: object) -> None:
        raise OSError("no power")

    event.listen(engine, "commit", cut)
    with pytest.raises(OSError, match="no power"):
        ledger.rotate(NEW, {})
    event.remove(engine, "commit", cut)
    assert ledger.append("event", {}).index == 3
    assert Ledger(engine, OLD, LOG_ID, ticking()).size == 4


def test_proofs_on_both_sides_of_a_rotation_hold_under_the_new_key(engine: Engine) -> None:
    ledger = begun(engine)
    ledger.rotate(NEW, {})
    ledger.append("event", {"number": 9})
    for index in (1, 4):
        report = check_proof(prove_entry(ledger, index), [NEW.public])
        assert report.entry is not None
        assert report.entry.index == index
    assert check_proof(prove_growth(ledger, 2), [NEW.public]).old_size == 2
    with pytest.raises(LedgerError):
        check_proof(prove_entry(ledger, 1), [OLD.public])  # the head is the new key's


def test_a_private_log_is_handed_on_with_its_ledger(engine: Engine, tmp_path: Path) -> None:
    ledger = begun(engine)
    private = PrivateLog(engine, OLD, LOG_ID, ticking())
    ledger.append("event", {"private_root": private.bind("ab", 1)})
    private.rotate(NEW, {})
    ledger.rotate(NEW, {})
    private.append("consent.withdrawn", {})
    ledger.append("event", {"private_root": private.bind("ab", 2)})
    paths = tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    ledger.export(paths[0])
    private.export(paths[1])
    for key in (OLD, NEW):
        report, own = verify_with_private(*paths, [key.public])
        assert report.valid, report.reason
        assert own.valid, own.reason
        assert report.key_id == own.key_id == NEW.public.key_id
