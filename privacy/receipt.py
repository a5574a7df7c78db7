"""Receipts: for each parcel that left the building, its exact bytes and a line about them.

A receipt is three files of one name: `.statement.json` and `.payload.bin`, byte for byte what was
sent, and `.receipt.json`, written last, so that a receipt that exists is whole. They stay on site.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import rfc8785
from pydantic import TypeAdapter, ValidationError
from securesystemslib.dsse import Envelope

from privacy.durable_file import replacing
from privacy.errors import AuricleError
from privacy.ledger_entry import timestamp
from privacy.parcel import SITE_KINDS, Parcel, ParcelKind

_RECEIPT = ".receipt.json"
_STATEMENT = ".statement.json"
_PAYLOAD = ".payload.bin"


class ReceiptError(AuricleError):
    """A receipt cannot be written, or is not of the bytes that are kept with it."""

    code = "receipt-invalid"
    exit_code = 9


@dataclasses.dataclass(frozen=True)
class Receipt:
    """What left: `sha256` is of the payload, `size_bytes` of statement and payload together.

    `at` is RFC 3339 in UTC: when the parcel was made ready to leave, the first time. A receipt is
    the site's own note: the parcel's statement and the ledger are what is signed.
    """

    job: str
    round: int
    kind: ParcelKind
    sha256: str
    size_bytes: int
    at: str
    statement_sha256: str

    @property
    def name(self) -> str:
        """Name of its files without their endings."""
        return f"{self.kind}-{self.round:06d}-{self.statement_sha256[:32]}"


_RECEIPTS = TypeAdapter(Receipt)


def write_receipt(folder: Path, parcel: Parcel, clock: Callable[[], datetime]) -> Receipt:
    """Keep `parcel` in `folder` before it leaves; on disk when this returns.

    The same parcel again, as when an order is repeated, keeps its first receipt. Files are
    readable by their owner only. Raises ReceiptError for a parcel that no site sends, or when the
    kept bytes of an earlier receipt are not the parcel's.
    """
    job, round_ = _names(parcel)
    receipt = Receipt(
        job=job,
        round=round_,
        kind=parcel.kind,
        sha256=parcel.payload_sha256,
        size_bytes=parcel.size_bytes,
        at=timestamp(clock()),
        statement_sha256=hashlib.sha256(parcel.statement).hexdigest(),
    )
    path = _path(folder, receipt, _RECEIPT)
    if path.exists():
        first = _read(path)
        if dataclasses.replace(first, at=receipt.at) != receipt:
            raise _altered(path)
        read_parcel(folder, first)
        return first
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(_path(folder, receipt, _STATEMENT), parcel.statement)
    _write(_path(folder, receipt, _PAYLOAD), parcel.payload)
    _write(path, rfc8785.dumps(dataclasses.asdict(receipt)))
    return receipt


def read_receipts(folder: Path) -> list[Receipt]:
    """Every receipt in `folder`, oldest first. Raises ReceiptError on one that is not readable.

    Reads no payload: `read_parcel` does, and checks it.
    """
    receipts = [_read(path) for path in folder.glob(f"*{_RECEIPT}")]
    return sorted(receipts, key=lambda receipt: (receipt.at, receipt.name))


def read_parcel(folder: Path, receipt: Receipt) -> Parcel:
    """The exact bytes that left. Raises ReceiptError when they are gone or not those any more."""
    path = _path(folder, receipt, _STATEMENT)
    try:
        payload = _path(folder, receipt, _PAYLOAD).read_bytes()
        parcel = Parcel(receipt.kind, path.read_bytes(), payload)
    except OSError as error:
        raise _altered(path) from error
    kept = (hashlib.sha256(parcel.statement).hexdigest(), parcel.payload_sha256, parcel.size_bytes)
    stated = (receipt.statement_sha256, receipt.sha256, receipt.size_bytes)
    if kept != stated or _names(parcel) != (receipt.job, receipt.round):
        raise _altered(path)
    return parcel


def _names(parcel: Parcel) -> tuple[str, int]:
    """Job and round of a statement that this site has just signed itself."""
    try:
        statement = json.loads(Envelope.from_dict(json.loads(parcel.statement)).payload)
        job, round_ = statement["job"], statement["round"]
        if parcel.kind not in SITE_KINDS:
            raise ValueError("its kind is unknown")
        if not isinstance(job, str) or type(round_) is not int or round_ < 0:
            raise ValueError("it names no job and round")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReceiptError(
            f"a parcel has no statement that a receipt could be of: {error}",
            remedy="seal parcels with privacy.signing.seal",
            code="receipt-unreadable",
        ) from error
    return job, round_


def _path(folder: Path, receipt: Receipt, ending: str) -> Path:
    return folder / (receipt.name + ending)


def _read(path: Path) -> Receipt:
    try:
        receipt = _RECEIPTS.validate_json(path.read_bytes(), strict=True)
    except (OSError, ValidationError) as error:
        raise _altered(path) from error
    if receipt.name + _RECEIPT != path.name:
        raise _altered(path)
    return receipt


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as file:
        file.write(data)


def _altered(path: Path) -> ReceiptError:
    return ReceiptError(
        f"the receipt {path} is incomplete or was altered after the parcel left",
        remedy="restore the receipts from your backup, and compare the ledger's statement hashes",
    )
