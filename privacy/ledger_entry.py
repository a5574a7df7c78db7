"""What a ledger is made of: signed entries in a hash chain, and signed tree heads.

An entry is RFC 8785 canonical JSON {format, log_id, index, at, kind, fields, previous_sha256},
sealed by its log's key in a DSSE envelope. `previous_sha256` names the entry before it, and each
entry's JSON is a leaf of the log's Merkle tree, whose root the signed tree head states. The
envelope is outside the hashes, so it must be byte for byte the one encoding that we write:
otherwise a verifier and a reader could see two texts under one signature.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self

import rfc8785

from privacy.envelope import read_envelope, signed_bytes
from privacy.errors import LedgerError, SignatureError
from privacy.merkle import MerkleTree
from privacy.signing import Identity, PublicIdentity, seal_statement

ENTRY_FORMAT = "auricle/ledger-entry/v1"
HEAD_FORMAT = "auricle/ledger-head/v1"
EXPORT_FORMAT = "auricle/ledger-export/v1"
ENTRY_TYPE = "application/vnd.auricle.ledger-entry+json"
HEAD_TYPE = "application/vnd.auricle.ledger-head+json"
MAX_ENTRY_BYTES = 64 * 1024  # of canonical JSON; an event names things by hash, it holds none
MAX_SEALED_BYTES = 2 * MAX_ENTRY_BYTES  # base64 and a signature fit well inside
NO_PREVIOUS = "0" * 64
KEY_ROTATED = "key.rotated"  # its field `public_pem` is the key that signs from the next entry on

_KIND = re.compile(r"[a-z][a-z0-9-]*(\.[a-z][a-z0-9-]*)*")
_SHA256_HEX = re.compile(r"[0-9a-f]{64}")
_STOP = (
    "stop the service, keep this database or file as evidence, and compare it with the tree heads "
    "that the other parties hold"
)


class EntryError(LedgerError):
    """One entry does not verify; `index` is its place in the log."""

    def __init__(self, problem: str, *, index: int, code: str = "ledger-entry-invalid") -> None:
        super().__init__(problem, remedy=_STOP, code=code)
        self.index = index


@dataclasses.dataclass(frozen=True)
class TreeHead:
    """State of a log: after `size` entries its Merkle root was `root` (hex)."""

    log_id: str
    size: int
    root: str


@dataclasses.dataclass(frozen=True)
class SignedTreeHead(TreeHead):
    """A tree head with the log's signature; `sealed` is the DSSE envelope to hand on."""

    at: str
    sealed: bytes = dataclasses.field(repr=False)

    @classmethod
    def sign(cls, head: TreeHead, at: str, identity: Identity) -> Self:
        """Sign `head` as of the timestamp `at`."""
        statement = {"format": HEAD_FORMAT, **dataclasses.asdict(head), "at": at}
        return cls(
            head.log_id,
            head.size,
            head.root,
            at,
            seal_statement(rfc8785.dumps(statement), HEAD_TYPE, identity),
        )

    @classmethod
    def from_sealed(cls, sealed: bytes, key: PublicIdentity) -> Self:
        """Read a head signed by `key`. Raises LedgerError on any other bytes."""
        try:
            fields = _fields(open_exact(sealed, HEAD_TYPE, key), _HEAD_FIELDS, HEAD_FORMAT)
        except ValueError as error:
            raise LedgerError(
                f"a signed tree head does not verify: {error}", remedy=_STOP, code="ledger-head"
            ) from error
        head = cls(fields["log_id"], fields["size"], fields["root"], fields["at"], sealed)
        require_head(head)
        return head


@dataclasses.dataclass(frozen=True)
class Entry:
    """One event of a log, numbered from 0.

    `at` is RFC 3339 in UTC; `sealed` is the DSSE envelope, whose payload is `payload`.
    """

    log_id: str
    index: int
    at: str
    kind: str
    fields: Mapping[str, Any]
    previous_sha256: str
    payload: bytes = dataclasses.field(repr=False)
    sealed: bytes = dataclasses.field(repr=False)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the canonical JSON; the next entry's `previous_sha256`."""
        return hashlib.sha256(self.payload).hexdigest()


class Chain:
    """The verified beginning of one log; it grows only by the entry that belongs next.

    Raises EntryError on any other. Knows nothing of storage: the ledger feeds it from its
    database, the verifier from an export.
    """

    def __init__(self, log_id: str, key: PublicIdentity) -> None:
        self.log_id = log_id
        self._keys = [(0, key)]  # first entry that each signs, and the key
        self.tree = MerkleTree()
        self._previous_sha256 = NO_PREVIOUS

    @property
    def first_key(self) -> PublicIdentity:
        """The key that began the log."""
        return self._keys[0][1]

    @property
    def key(self) -> PublicIdentity:
        """The key that signs the next entry, and the head."""
        return self._keys[-1][1]

    def key_of(self, index: int) -> PublicIdentity:
        """The key that signed entry `index`."""
        return next(key for start, key in reversed(self._keys) if start <= index)

    @property
    def head(self) -> TreeHead:
        """Size and root of what has been verified."""
        return TreeHead(self.log_id, self.tree.size, self.tree.root().hex())

    def draft(self, kind: str, fields: Mapping[str, Any], at: str, identity: Identity) -> Entry:
        """The entry that comes next, signed. The chain grows by it only on `extend`.

        Raises LedgerError when the event cannot be written as canonical JSON.
        """
        content: dict[str, Any] = {
            "log_id": self.log_id,
            "index": self.tree.size,
            "at": at,
            "kind": kind,
            "fields": fields,
            "previous_sha256": self._previous_sha256,
        }
        payload = _canonical_event(kind, {"format": ENTRY_FORMAT, **content})
        # Read back, so that what the caller holds is what was written, and not his own mapping.
        content["fields"] = json.loads(payload)["fields"]
        sealed = seal_statement(payload, ENTRY_TYPE, identity)
        return Entry(**content, payload=payload, sealed=sealed)

    @contextmanager
    def tentatively(self) -> Iterator[None]:
        """What the block adds is taken off again when it raises."""
        size, previous, keys = self.tree.size, self._previous_sha256, len(self._keys)
        try:
            yield
        except BaseException:
            del self._keys[keys:]
            self.tree.truncate(size)
            self._previous_sha256 = previous
            raise

    def extend(self, entry: Entry) -> None:
        """Grow by an entry drafted or opened here as the next one."""
        if (entry.index, entry.previous_sha256) != (self.tree.size, self._previous_sha256):
            raise EntryError(
                f"entry {entry.index} does not follow entry {self.tree.size - 1} of {self.log_id}",
                index=self.tree.size,
            )
        if entry.kind == KEY_ROTATED:
            self._keys.append((entry.index + 1, _successor(entry)))
        self.tree.append(entry.payload)
        self._previous_sha256 = entry.sha256

    def open_next(self, sealed: bytes, *, signed: bool = False) -> Entry:
        """Verify the next entry's signature, encoding, place and link, and grow by it.

        `signed` says that the caller has found its signature good (`is_signed`).
        """
        index = self.tree.size
        try:
            entry = open_entry(sealed, self.key, signed=signed)
        except ValueError as error:
            raise EntryError(
                f"entry {index} of {self.log_id} does not verify: {error}", index=index
            ) from error
        if entry.log_id != self.log_id:
            raise EntryError(f"entry {index} belongs to another log, {entry.log_id}", index=index)
        self.extend(entry)
        return entry


def _successor(entry: Entry) -> PublicIdentity:
    try:
        return PublicIdentity.from_pem(entry.fields["public_pem"])
    except (SignatureError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise EntryError(
            f"entry {entry.index} of {entry.log_id} hands the log to no key", index=entry.index
        ) from error


def open_entry(sealed: bytes, key: PublicIdentity, *, signed: bool = False) -> Entry:
    """Read one entry signed by `key`, wherever in its log it belongs.

    `signed` says that the caller has found its signature good. Raises ValueError, saying what is
    wrong.
    """
    if signed:
        payload, _ = _read_exact(sealed, ENTRY_TYPE, key)
    else:
        payload = open_exact(sealed, ENTRY_TYPE, key)
    fields = _fields(payload, _ENTRY_FIELDS, ENTRY_FORMAT)
    del fields["format"]
    return Entry(**fields, payload=payload, sealed=sealed)


def is_signed(sealed: bytes, key: PublicIdentity) -> bool:
    """Whether `sealed` is an entry's envelope that `key` signed."""
    try:
        open_exact(sealed, ENTRY_TYPE, key)
    except ValueError:
        return False
    return True


def export_header(log_id: str, key: PublicIdentity) -> bytes:
    """First line of an export: whose log it is and which key signed it."""
    return rfc8785.dumps(
        {
            "format": EXPORT_FORMAT,
            "log_id": log_id,
            "key_id": key.key_id,
            "public_pem": key.public_pem,
        }
    )


def require_head(head: TreeHead) -> None:
    """Raise LedgerError unless the head is a possible one: a size and a hex SHA-256."""
    if head.size < 0 or not _SHA256_HEX.fullmatch(head.root):
        raise LedgerError(
            f"{head.log_id} states a tree head that cannot be one", remedy=_STOP, code="ledger-head"
        )


def timestamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds. Raises LedgerError on a time without a zone."""
    if moment.tzinfo is None:
        raise LedgerError(
            "the ledger's clock gave a time without a zone",
            remedy="pass a clock such as lambda: datetime.now(UTC)",
            code="ledger-clock",
        )
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


_HEAD_FIELDS = {"format": str, "log_id": str, "size": int, "root": str, "at": str}
_ENTRY_FIELDS = {
    "format": str,
    "log_id": str,
    "index": int,
    "at": str,
    "kind": str,
    "fields": dict,
    "previous_sha256": str,
}


def _canonical_event(kind: str, content: dict[str, Any]) -> bytes:
    remedy = "write strings, whole numbers under 2^53, finite numbers, lists and objects only"
    if not _KIND.fullmatch(kind):
        raise LedgerError(
            f"{kind!r} is not a kind of event", remedy="use lower-case words joined by dots"
        )
    try:
        payload = rfc8785.dumps(content)
    except (rfc8785.CanonicalizationError, AttributeError, TypeError, ValueError) as error:
        raise LedgerError(
            f"event {kind} cannot be written as canonical JSON: {error}", remedy=remedy
        ) from error
    if len(payload) > MAX_ENTRY_BYTES:
        raise LedgerError(
            f"event {kind} takes {len(payload)} bytes, more than {MAX_ENTRY_BYTES}",
            remedy="name large things by their SHA-256",
        )
    return payload


def open_exact(sealed: bytes, payload_type: str, key: PublicIdentity) -> bytes:
    """Payload of the one encoding that we write, signed by `key`. Raises ValueError."""
    payload, signature = _read_exact(sealed, payload_type, key)
    if not key.signed(signed_bytes(payload, payload_type), signature):
        raise ValueError("its signature does not verify")
    return payload


def _read_exact(sealed: bytes, payload_type: str, key: PublicIdentity) -> tuple[bytes, bytes]:
    if len(sealed) > MAX_SEALED_BYTES:
        raise ValueError(f"it has {len(sealed)} bytes, over {MAX_SEALED_BYTES}")
    return read_envelope(sealed, payload_type, key.key_id)


def _fields(payload: bytes, types: Mapping[str, type], format_name: str) -> dict[str, Any]:
    """Parse a JSON object with exactly the fields of `types`. Raises ValueError."""
    try:
        fields = json.loads(payload, object_pairs_hook=_without_duplicates)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(fields, dict) or fields.keys() != types.keys():
        raise ValueError("its fields are not those of the format")
    for name, kind in types.items():
        if type(fields[name]) is not kind:
            raise ValueError(f"its field {name} is not of type {kind.__name__}")
    if fields["format"] != format_name:
        raise ValueError(f"its format is not {format_name}")
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("it names a field twice")
    return fields
