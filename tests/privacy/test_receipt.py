"""Receipts: byte for byte what left the building, and nothing else under that name."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.parcel import Answer, Parcel, UpdateHeader
from privacy.receipt import ReceiptError, read_parcel, read_receipts, write_receipt
from privacy.signing import Identity, seal, seal_statement
from tests.privacy.ledger_support import ticking

IDENTITY = Identity.generate()


def update(round_: int = 3, payload: bytes = b"\x00\x01" * 100, job: str = "0b0b") -> Parcel:
    header = UpdateHeader(
        job=job,
        round=round_,
        site="north",
        plan_sha256="a" * 64,
        payload_sha256=hashlib.sha256(payload).hexdigest(),
        size_bytes=len(payload),
        tree_head="b" * 64,
        tree_size=4,
    )
    return Parcel("update", seal(header, IDENTITY), payload)


def refusal() -> Parcel:
    answer = Answer("0b0b", 0, "north", "c" * 64, "budget-exceeded")
    return Parcel("refused", seal(answer, IDENTITY))


def test_a_receipt_says_what_left_and_keeps_its_bytes(tmp_path: Path) -> None:
    parcel = update()
    receipt = write_receipt(tmp_path, parcel, ticking())
    assert (receipt.job, receipt.round, receipt.kind) == ("0b0b", 3, "update")
    assert receipt.sha256 == hashlib.sha256(parcel.payload).hexdigest()
    assert receipt.statement_sha256 == hashlib.sha256(parcel.statement).hexdigest()
    assert receipt.size_bytes == len(parcel.statement) + 200
    assert receipt.at == "2026-03-02T08:00:00.000000Z"
    assert read_receipts(tmp_path) == [receipt]
    assert read_parcel(tmp_path, receipt) == parcel


def test_receipts_are_listed_in_the_order_in_which_parcels_left(tmp_path: Path) -> None:
    clock = ticking()
    written = [
        write_receipt(tmp_path, parcel, clock) for parcel in (refusal(), update(2), update())
    ]
    assert read_receipts(tmp_path) == written
    assert read_parcel(tmp_path, written[0]).payload == b""


def test_no_folder_yet_means_no_receipts(tmp_path: Path) -> None:
    assert read_receipts(tmp_path / "receipts") == []
    write_receipt(tmp_path / "receipts", update(), ticking())
    assert len(read_receipts(tmp_path / "receipts")) == 1


def test_a_parcel_sent_again_keeps_its_first_receipt(tmp_path: Path) -> None:
    clock = ticking()
    first = write_receipt(tmp_path, update(), clock)
    assert write_receipt(tmp_path, update(), clock) == first
    assert read_receipts(tmp_path) == [first]


def test_receipts_are_their_owners_alone(tmp_path: Path) -> None:
    folder = tmp_path / "receipts"
    write_receipt(folder, update(), ticking())
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert len(list(folder.iterdir())) == 3


@pytest.mark.parametrize("job", ["../../escape", "/etc/passwd", "a\x00b", "x" * 5000])
def test_a_job_of_any_name_stays_in_the_folder(tmp_path: Path, job: str) -> None:
    folder = tmp_path / "receipts"
    receipt = write_receipt(folder, update(job=job), ticking())
    assert receipt.job == job
    assert len(list(folder.iterdir())) == 3
    assert list(tmp_path.iterdir()) == [folder]


def edited(data: bytes) -> bytes:
    return data[:20] + bytes([data[20] ^ 1]) + data[21:]


DAMAGE = {
    "statement-edited": (".statement.json", edited),
    "statement-cut": (".statement.json", lambda data: data[:-1]),
    "statement-gone": (".statement.json", None),
    "payload-edited": (".payload.bin", edited),
    "payload-cut": (".payload.bin", lambda data: data[:-1]),
    "payload-gone": (".payload.bin", None),
    "receipt-cut": (".receipt.json", lambda data: data[:-1]),
    "receipt-of-another-job": (".receipt.json", lambda data: data.replace(b"0b0b", b"0c0c")),
    "receipt-of-another-round": (".receipt.json", lambda data: data.replace(b":3,", b":4,")),
    "receipt-of-another-size": (
        ".receipt.json",
        lambda data: data.replace(b'"size_bytes":', b'"size_bytes":9'),
    ),
}


def list_and_open(folder: Path) -> list[Parcel]:
    return [read_parcel(folder, receipt) for receipt in read_receipts(folder)]


@pytest.mark.parametrize(("ending", "damage"), DAMAGE.values(), ids=DAMAGE)
def test_altered_bytes_are_noticed(
    tmp_path: Path, ending: str, damage: Callable[[bytes], bytes] | None
) -> None:
    receipt = write_receipt(tmp_path, update(), ticking())
    path = tmp_path / (receipt.name + ending)
    if damage is None:
        path.unlink()
    else:
        data = path.read_bytes()
        assert damage(data) != data
        path.write_bytes(damage(data))
    with pytest.raises(ReceiptError):
        list_and_open(tmp_path)
    with pytest.raises(ReceiptError):
        write_receipt(tmp_path, update(), ticking())


def test_a_crash_before_the_receipt_is_mended_by_sending_again(tmp_path: Path) -> None:
    receipt = write_receipt(tmp_path, update(), ticking())
    (tmp_path / f"{receipt.name}.receipt.json").unlink()
    (tmp_path / f"{receipt.name}.payload.bin").write_bytes(b"half")
    assert write_receipt(tmp_path, update(), ticking()) == receipt
    assert read_parcel(tmp_path, receipt) == update()


def test_a_receipt_renamed_does_not_pass_for_another(tmp_path: Path) -> None:
    receipt = write_receipt(tmp_path, update(), ticking())
    (tmp_path / f"{receipt.name}.receipt.json").rename(
        tmp_path / "update-000004-00000000000000000000000000000000.receipt.json"
    )
    with pytest.raises(ReceiptError):
        read_receipts(tmp_path)


NOT_STATEMENTS = {
    "no-envelope": b"not an envelope",
    "no-json-in-it": seal_statement(b"text", "text/plain", IDENTITY),
    "no-job-in-it": seal_statement(b"{}", "application/json", IDENTITY),
    "round-as-text": seal_statement(b'{"job":"a","round":"1"}', "application/json", IDENTITY),
    "negative-round": seal_statement(b'{"job":"a","round":-1}', "application/json", IDENTITY),
}


@pytest.mark.parametrize("statement", NOT_STATEMENTS.values(), ids=NOT_STATEMENTS)
def test_what_no_site_sends_gets_no_receipt(tmp_path: Path, statement: bytes) -> None:
    with pytest.raises(ReceiptError) as failure:
        write_receipt(tmp_path, Parcel("update", statement), ticking())
    assert failure.value.code == "receipt-unreadable"
    assert list(tmp_path.iterdir()) == []


def test_a_kind_that_is_none_gets_no_receipt(tmp_path: Path) -> None:
    parcel = dataclasses.replace(update(), kind="../up")  # type: ignore[arg-type]
    with pytest.raises(ReceiptError):
        write_receipt(tmp_path, parcel, ticking())


@settings(max_examples=25)
@given(payload=st.binary(max_size=2000))
def test_every_payload_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, payload: bytes
) -> None:
    folder = tmp_path_factory.mktemp("receipts")
    parcel = update(payload=payload)
    assert read_parcel(folder, write_receipt(folder, parcel, ticking())) == parcel
