"""A parcel as Flower carries it.

Flower makes an object, a request each way, of every record, and keeps equal ones once. So a small
payload lies in the parcel's own record, and a large one in pieces that the parcels of several sites
can share.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

from privacy.parcel import SITE_KINDS, Parcel

INLINE_BYTES = 1 << 20
PIECE_BYTES = 16 << 20


def parcel_to_content(parcel: Parcel) -> RecordDict:
    """A parcel as Flower carries it: one record, and one more for each piece of a large payload."""
    payload = parcel.payload
    inline = payload if len(payload) <= INLINE_BYTES else b""
    record = {"kind": parcel.kind, "statement": parcel.statement, "payload": inline}
    content = RecordDict({"parcel": ConfigRecord(record)})
    for at in range(0, 0 if inline else len(payload), PIECE_BYTES):
        # The place makes equal pieces of one payload two objects.
        piece = {"at": at, "payload": payload[at : at + PIECE_BYTES]}
        content[f"piece-{len(content)}"] = ConfigRecord(piece)
    return content


def content_to_parcel(content: RecordDict) -> Parcel:
    """The inverse of `parcel_to_content`. Raises ValueError or KeyError on anything else."""
    records = content.config_records
    names = ["parcel", *(f"piece-{number}" for number in range(1, len(content)))]
    kind, statement = records["parcel"]["kind"], records["parcel"]["statement"]
    pieces = [records[name]["payload"] for name in names]
    if kind not in SITE_KINDS or not all(isinstance(part, bytes) for part in (statement, *pieces)):
        raise ValueError("not a site's parcel")
    return Parcel(kind, statement, b"".join(pieces))
