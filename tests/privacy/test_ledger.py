"""The ledger: durable, signed, safe for several writers, and closed to a changed database (I4)."""

from __future__ import annotations

import json
import math
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, event, text
from sqlalchemy.exc import OperationalError

from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_entry import EntryError, open_entry
from privacy.merkle import leaf_hash, verify_consistency, verify_inclusion
from privacy.signing import Identity
from privacy.store import open_engine
from tests.privacy.ledger_support import LOG_ID, opened, ticking

IDENTITY = Identity.generate()
EVENT = {"job": "0b0b", "round": 1, "sampling_rate": 0.25, "codes": ["ok"]}
APPENDER = Path(__file__).with_name("ledger_appender.py")


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    engine = open_engine(url)
    yield engine
    engine.dispose()


def open_ledger(engine: Engine, log_id: str = LOG_ID, identity: Identity = IDENTITY) -> Ledger:
    return Ledger(engine, identity, log_id, ticking())


def filled(engine: Engine, entries: int) -> Ledger:
    ledger = open_ledger(engine)
    for number in range(entries):
        ledger.append("round.opened", EVENT | {"round": number})
    return ledger


# The same change in PostgreSQL's words.
POSTGRESQL = {
    "CAST(replace(CAST(sealed AS TEXT), 'a', 'b') AS BLOB)": (
        "convert_to(replace(convert_from(sealed, 'UTF8'), 'a', 'b'), 'UTF8')"
    ),
    "CAST(CAST(sealed AS TEXT) || ' ' AS BLOB)": "sealed || convert_to(' ', 'UTF8')",
    "CAST(replace(CAST(head AS TEXT), 'a', 'b') AS BLOB)": (
        "convert_to(replace(convert_from(head, 'UTF8'), 'a', 'b'), 'UTF8')"
    ),
    "x'00'": "convert_to('0', 'UTF8')",
}


def execute(engine: Engine, statement: str, **values: object) -> None:
    """Change the database behind the ledger's back, as its administrator can."""
    if engine.dialect.name == "postgresql":
        for ours, theirs in POSTGRESQL.items():
            statement = statement.replace(ours, theirs)
        with engine.begin() as connection:
            # Foreign keys do not hold an administrator back; sqlite3 enforces none by itself.
            connection.execute(text("SET LOCAL session_replication_role = replica"))
            connection.execute(text(statement), values)
        return
    assert engine.url.database is not None
    with closing(sqlite3.connect(engine.url.database)) as connection, connection:
        connection.execute(statement, values)


# --- what it records


def test_an_entry_says_what_happened_and_what_came_before(engine: Engine) -> None:
    ledger = open_ledger(engine)
    first = ledger.append("job.opened", {"job": "0b0b"})
    second = ledger.append("round.opened", EVENT)
    assert (first.index, first.previous_sha256) == (0, "0" * 64)
    assert (second.index, second.previous_sha256) == (1, first.sha256)
    assert second.fields == EVENT
    assert second.at == "2026-03-02T08:00:02.000000Z"
    assert open_entry(second.sealed, IDENTITY.public) == second
    assert json.loads(second.payload)["format"] == "auricle/ledger-entry/v1"
    assert ledger.entries() == [first, second]
    assert ledger.entries(1, 2) == [second]
    assert ledger.entries(2) == []


def test_reopening_finds_the_same_log(engine: Engine) -> None:
    head = filled(engine, 5).tree_head()
    again = open_ledger(engine)
    assert again.tree_head() == head
    assert again.append("round.opened", EVENT).index == 5


def test_an_empty_ledger_has_a_signed_head(engine: Engine) -> None:
    head = open_ledger(engine).tree_head()
    assert (head.size, head.root) == (
        0,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    )


def test_two_logs_share_a_database(engine: Engine) -> None:
    north, south = open_ledger(engine), open_ledger(engine, "site/south")
    north.append("job.opened", {"job": "0b0b"})
    south.append("job.opened", {"job": "0c0c"})
    assert (north.size, south.size) == (1, 1)
    assert south.entries()[0].fields == {"job": "0c0c"}


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("round.trained", {"epsilon_loc": math.inf}),
        ("round.trained", {"epsilon_loc": math.nan}),
        ("round.trained", {"when": datetime(2026, 1, 1)}),
        ("round.trained", {"seed": 2**60}),
        ("round.trained", {1: "a number for a name"}),
        ("round.trained", {"text": "x" * 70_000}),
        ("Round Trained", {}),
        ("", {}),
    ],
    ids=[
        "infinity",
        "nan",
        "date",
        "integer-beyond-2^53",
        "field-not-named",
        "too-large",
        "kind-not-dotted",
        "no-kind",
    ],
)
def test_what_cannot_be_canonical_json_is_refused_and_leaves_nothing(
    engine: Engine, kind: str, fields: dict[str, object]
) -> None:
    ledger = filled(engine, 2)
    head = ledger.tree_head()
    with pytest.raises(LedgerError):
        ledger.append(kind, fields)
    assert ledger.tree_head() == head
    assert ledger.append("round.opened", EVENT).index == 2


def test_a_clock_without_a_zone_is_refused(engine: Engine) -> None:
    with pytest.raises(LedgerError) as refusal:
        Ledger(engine, IDENTITY, LOG_ID, lambda: datetime(2026, 1, 1))
    assert refusal.value.code == "ledger-clock"


def test_changing_the_callers_fields_afterwards_changes_no_entry(engine: Engine) -> None:
    fields = {"codes": ["ok"]}
    entry = open_ledger(engine).append("round.opened", fields)
    fields["codes"].append("later")
    assert entry.fields == {"codes": ["ok"]}


# --- proofs


def test_proofs_verify_against_the_signed_heads(engine: Engine) -> None:
    ledger = open_ledger(engine)
    heads = [ledger.tree_head()]
    for number in range(9):
        ledger.append("round.opened", EVENT | {"round": number})
        heads.append(ledger.tree_head())
    for index, entry in enumerate(ledger.entries()):
        proof = ledger.inclusion_proof(index)
        root = bytes.fromhex(heads[-1].root)
        assert verify_inclusion(leaf_hash(entry.payload), index, 9, proof, root)
    for old in heads:
        for new in heads[old.size :]:
            proof = ledger.consistency_proof(old.size, new.size)
            roots = bytes.fromhex(old.root), bytes.fromhex(new.root)
            assert verify_consistency(old.size, roots[0], new.size, roots[1], proof)


def test_a_proof_of_what_never_was_is_refused(engine: Engine) -> None:
    ledger = filled(engine, 3)
    for ask in (
        lambda: ledger.inclusion_proof(3),
        lambda: ledger.inclusion_proof(0, 4),
        lambda: ledger.consistency_proof(4),
        lambda: ledger.consistency_proof(2, 1),
    ):
        with pytest.raises(LedgerError) as refusal:
            ask()
        assert refusal.value.code == "ledger-range"
    assert ledger.size == 3


# --- a changed database stops the service (I4)

TAMPERING = {
    "entry-deleted-in-the-middle": "DELETE FROM ledger_entry WHERE position = 2",
    "last-entry-deleted": "DELETE FROM ledger_entry WHERE position = 4",
    "first-entry-deleted": "DELETE FROM ledger_entry WHERE position = 0",
    "every-entry-deleted": "DELETE FROM ledger_entry",
    "log-forgotten": "DELETE FROM ledger_log",
    "entry-overwritten-by-another": (
        "UPDATE ledger_entry SET sealed = (SELECT sealed FROM ledger_entry WHERE position = 3)"
        " WHERE position = 1"
    ),
    "entry-replayed-at-the-end": (
        "INSERT INTO ledger_entry SELECT log_id, 5, sealed FROM ledger_entry WHERE position = 4"
    ),
    "entry-edited": (
        "UPDATE ledger_entry SET sealed = CAST(replace(CAST(sealed AS TEXT), 'a', 'b') AS BLOB)"
        " WHERE position = 4"
    ),
    "space-added-to-an-envelope": (
        "UPDATE ledger_entry SET sealed = CAST(CAST(sealed AS TEXT) || ' ' AS BLOB)"
        " WHERE position = 4"
    ),
    "head-edited": (
        "UPDATE ledger_log SET head = CAST(replace(CAST(head AS TEXT), 'a', 'b') AS BLOB)"
    ),
    "entry-in-place-of-the-head": (
        "UPDATE ledger_log SET head = (SELECT sealed FROM ledger_entry WHERE position = 4)"
    ),
}


@pytest.mark.parametrize("statement", TAMPERING.values(), ids=TAMPERING)
def test_a_tampered_database_does_not_open(engine: Engine, statement: str) -> None:
    filled(engine, 5)
    execute(engine, statement)
    for _ in range(2):
        with pytest.raises(LedgerError):
            open_ledger(engine)


def test_entries_swapped_do_not_open(engine: Engine) -> None:
    filled(engine, 5)
    for old, new in ((1, 9), (2, 1), (9, 2)):
        move = "UPDATE ledger_entry SET position = :new WHERE position = :old"
        execute(engine, move, old=old, new=new)
    with pytest.raises(EntryError) as refusal:
        open_ledger(engine)
    assert refusal.value.index == 1


def test_an_older_head_put_back_does_not_open(engine: Engine) -> None:
    ledger = filled(engine, 4)
    older = ledger.tree_head()
    ledger.append("round.opened", EVENT)
    execute(engine, "UPDATE ledger_log SET head = :head", head=older.sealed)
    with pytest.raises(LedgerError):
        open_ledger(engine)


def test_entries_of_another_log_of_the_same_key_do_not_pass(engine: Engine) -> None:
    filled(engine, 1)
    open_ledger(engine, "site/south").append("round.opened", EVENT)
    foreign = "(SELECT sealed FROM ledger_entry WHERE log_id = 'site/south')"
    execute(engine, f"UPDATE ledger_entry SET sealed = {foreign} WHERE log_id = '{LOG_ID}'")
    with pytest.raises(EntryError) as refusal:
        open_ledger(engine)
    assert refusal.value.index == 0


def test_another_key_may_not_continue_the_log(engine: Engine) -> None:
    filled(engine, 2)
    with pytest.raises(LedgerError) as refusal:
        open_ledger(engine, identity=Identity.generate())
    assert refusal.value.code == "ledger-key"


def test_tampering_while_in_use_stops_every_later_operation(engine: Engine, tmp_path: Path) -> None:
    ledger = filled(engine, 3)
    execute(engine, "UPDATE ledger_log SET head = x'00'")
    for use in (
        lambda: ledger.append("round.opened", EVENT),
        ledger.tree_head,
        ledger.entries,
        ledger.peer("site/south").show,
        lambda: ledger.export(tmp_path / "export.jsonl"),
    ):
        with pytest.raises(LedgerError):
            use()
    assert not (tmp_path / "export.jsonl").exists()


def test_an_old_entry_changed_while_in_use_is_not_served(engine: Engine, tmp_path: Path) -> None:
    ledger = filled(engine, 3)
    execute(engine, TAMPERING["entry-overwritten-by-another"].replace("= 3", "= 2"))
    with pytest.raises(EntryError) as refusal:
        ledger.entries()
    assert refusal.value.index == 1
    with pytest.raises(LedgerError):
        ledger.export(tmp_path / "export.jsonl")
    assert list(tmp_path.glob("export*")) == []


def test_a_log_cut_short_while_in_use_is_noticed(engine: Engine) -> None:
    ledger = filled(engine, 3)
    older = ledger.tree_head()
    ledger.append("round.opened", EVENT)
    execute(engine, "DELETE FROM ledger_entry WHERE position = 3")
    execute(engine, "UPDATE ledger_log SET head = :head", head=older.sealed)
    with pytest.raises(LedgerError):
        ledger.append("round.opened", EVENT)


# --- several writers


def test_threads_and_two_ledger_objects_make_one_chain(engine: Engine) -> None:
    one, two = open_ledger(engine), open_ledger(engine)
    faults: list[Exception] = []

    def work(ledger: Ledger, name: str) -> None:
        try:
            for number in range(10):
                ledger.append("round.opened", {"writer": name, "number": number})
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            faults.append(error)

    writers = [
        threading.Thread(target=work, args=(ledger, name))
        for ledger, name in ((one, "a"), (one, "b"), (two, "c"))
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert faults == []
    assert one.tree_head() == two.tree_head() == open_ledger(engine).tree_head()
    entries = one.entries()
    for name in "abc":
        mine = [entry.fields["number"] for entry in entries if entry.fields["writer"] == name]
        assert mine == list(range(10))


def start_appender(folder: Path, writer: str, entries: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, APPENDER, folder, writer, str(entries)],
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_make_one_chain(tmp_path: Path) -> None:
    IDENTITY.save(tmp_path / "site.pem")
    writers = [start_appender(tmp_path, name, 20) for name in ("a", "b")]
    acknowledged = [
        line for writer in writers for line in writer.communicate(timeout=60)[0].split()
    ]
    assert [writer.returncode for writer in writers] == [0, 0]
    assert sorted(int(index) for index in acknowledged) == list(range(40))
    with opened(tmp_path) as engine:
        entries = open_ledger(engine).entries()
    assert sorted(entry.fields["number"] for entry in entries) == sorted([*range(20)] * 2)


def test_appends_of_many_threads_share_commits(engine: Engine) -> None:
    """Group commit: while one waits for the disk, all others join the next transaction."""
    ledger, commits = open_ledger(engine), []
    event.listen(engine, "commit", commits.append)
    barrier = threading.Barrier(8)

    def work(name: int) -> list[int]:
        barrier.wait(timeout=30)
        return [
            ledger.append("round.opened", {"writer": name, "number": number}).index
            for number in range(10)
        ]

    ledger._lock.acquire()  # the disk is slow just now
    with ThreadPoolExecutor(8) as pool:
        working = [pool.submit(work, name) for name in range(8)]
        while len(ledger._waiting) < 8:
            pass
        ledger._lock.release()
        indices = sorted(index for one in working for index in one.result())
    assert indices == list(range(80))
    assert len(commits) < 80
    assert open_ledger(engine).size == 80


def test_a_bad_event_among_others_fails_alone(engine: Engine) -> None:
    ledger = open_ledger(engine)
    good = threading.Thread(target=ledger.append, args=("round.opened", EVENT))
    with ledger._lock:
        good.start()
        while not ledger._waiting:
            pass
        bad = threading.Thread(target=lambda: outcomes.append(_code(ledger)))
        outcomes: list[str] = []
        bad.start()
        while len(ledger._waiting) < 2:
            pass
    good.join()
    bad.join()
    assert outcomes == ["ledger-invalid"]
    assert [entry.fields for entry in ledger.entries()] == [EVENT]


def _code(ledger: Ledger) -> str:
    try:
        ledger.append("round.opened", {"epsilon": math.nan})
    except LedgerError as error:
        return error.code
    return "appended"


@pytest.mark.parametrize("moment", ["before_cursor_execute", "commit"])
def test_an_append_that_the_database_refuses_leaves_the_chain_as_it_was(
    engine: Engine, moment: str
) -> None:
    ledger, other = filled(engine, 3), open_ledger(engine)
    other.append("round.opened", EVENT)  # which `ledger` sees only in the append that fails

    def fail(*arguments: object) -> None:
        if moment == "commit" or "INSERT INTO ledger_entry" in str(arguments[2]):
            raise OperationalError("COMMIT", {}, OSError("disk I/O error"))

    event.listen(engine, moment, fail)
    with pytest.raises(OperationalError):
        ledger.append("round.opened", EVENT)
    event.remove(engine, moment, fail)
    assert ledger.size == 4
    assert ledger.append("round.opened", EVENT).index == 4
    assert open_ledger(engine).tree_head() == ledger.tree_head()
