"""Proofs of one entry, or of growth, in a file that its reader checks without us and offline.

An inclusion proof shows one entry under the log's signed head without any other entry (RFC 9162
section 2.1.3); a consistency proof shows that the log under the signed head extends the one that
the reader has seen before (section 2.1.4). Among 100,000 entries the hashes take 544 bytes, and 728
in the file, as base64. The file is RFC 8785 canonical JSON with the public key, the signed head
and, for inclusion, the signed entry.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
from collections.abc import Collection
from typing import Any

import rfc8785

from privacy.errors import LedgerError, SignatureError
from privacy.ledger import Ledger
from privacy.ledger_entry import Entry, SignedTreeHead, open_entry
from privacy.merkle import HASH_BYTES, leaf_hash, verify_consistency, verify_inclusion
from privacy.signing import PublicIdentity

PROOF_FORMAT = "auricle/ledger-proof/v1"
MAX_PROOF_BYTES = 256 * 1024
_UNREADABLE = (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error)


@dataclasses.dataclass(frozen=True)
class ProofReport:
    """What a file proved.

    Attributes:
        key_trusted: whether the reader gave the key; if not, whoever holds `key_id` wrote the log.
        size, root: the signed head, of `at`.
        entry: the entry that is in the log; None for a consistency proof.
        old_size, old_root: the earlier head that this log extends; None for an inclusion proof.
    """

    log_id: str
    key_id: str
    key_trusted: bool
    size: int
    root: str
    at: str
    entry: Entry | None = None
    old_size: int | None = None
    old_root: str | None = None


def prove_entry(ledger: Ledger, index: int) -> bytes:
    """File that shows entry `index` under the current head. Raises LedgerError "ledger-range"."""
    head = ledger.tree_head()
    hashes = ledger.inclusion_proof(index, head.size)
    (entry,) = ledger.entries(index, index + 1)
    what = {"entry": entry.sealed.decode("ascii")}
    if (key := ledger.key_of(index)) != ledger.public:
        what["entry_public_pem"] = key.public_pem  # the log has been handed on since
    return _write(ledger, head, hashes, what)


def prove_growth(ledger: Ledger, old_size: int) -> bytes:
    """File that shows the current head to extend that of `old_size`. Raises LedgerError."""
    head = ledger.tree_head()
    hashes = ledger.consistency_proof(old_size, head.size)
    return _write(ledger, head, hashes, {"old_size": old_size, "old_root": ledger.root(old_size)})


def check_proof(
    data: bytes, trusted: Collection[PublicIdentity] | None = None, old_root: str | None = None
) -> ProofReport:
    """Check a file of `prove_entry` or `prove_growth`.

    Args:
        data: the file's bytes.
        trusted: keys that may have signed the log; None takes the file's own, and says so.
        old_root: hex root that the reader knows from before; the file's must be the same.

    Raises LedgerError "ledger-proof" saying what does not hold.
    """
    try:
        fields = _read(data)
        key = PublicIdentity.from_pem(fields["public_pem"])
        if trusted is not None and key not in trusted:
            raise ValueError(f"key {key.key_id}, which signed it, is not among the trusted keys")
        head = SignedTreeHead.from_sealed(fields["head"].encode("ascii"), key)
        hashes = _split(base64.b64decode(fields["hashes"], validate=True))
        report = ProofReport(
            log_id=head.log_id,
            key_id=key.key_id,
            key_trusted=trusted is not None,
            size=head.size,
            root=head.root,
            at=head.at,
        )
        if "entry" in fields:
            # Under a head of a trusted key an entry is its log's, whichever key it names.
            earlier = fields.get("entry_public_pem")
            signer = key if earlier is None else PublicIdentity.from_pem(earlier)
            entry = _included(fields["entry"], signer, head, hashes)
            return dataclasses.replace(report, entry=entry)
        _require_growth(fields, head, hashes, old_root)
        return dataclasses.replace(report, old_size=fields["old_size"], old_root=fields["old_root"])
    except (*_UNREADABLE, SignatureError, LedgerError) as error:
        raise LedgerError(
            f"the proof does not hold: {error}",
            remedy="keep the file, and ask the log's owner for an export of the whole log",
            code="ledger-proof",
        ) from error


def _write(
    ledger: Ledger, head: SignedTreeHead, hashes: list[bytes], what: dict[str, Any]
) -> bytes:
    return rfc8785.dumps(
        {
            "format": PROOF_FORMAT,
            "public_pem": ledger.public.public_pem,
            "head": head.sealed.decode("ascii"),
            "hashes": base64.b64encode(b"".join(hashes)).decode("ascii"),
            **what,
        }
    )


def _read(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_PROOF_BYTES:
        raise ValueError(f"it has {len(data)} bytes, over {MAX_PROOF_BYTES}")
    fields = json.loads(data)
    if not isinstance(fields, dict) or fields.get("format") != PROOF_FORMAT:
        raise ValueError("it is not a proof of a ledger")
    if rfc8785.dumps(fields) != data:
        raise ValueError("it is not written the one way it should be")
    return fields


def _included(sealed: str, key: PublicIdentity, head: SignedTreeHead, path: list[bytes]) -> Entry:
    entry = open_entry(sealed.encode("ascii"), key)
    if entry.log_id != head.log_id:
        raise ValueError("its entry and its head are of two logs")
    leaf, root = leaf_hash(entry.payload), bytes.fromhex(head.root)
    if not verify_inclusion(leaf, entry.index, head.size, path, root):
        raise ValueError(f"entry {entry.index} is not under the signed head")
    return entry


def _require_growth(
    fields: dict[str, Any], head: SignedTreeHead, hashes: list[bytes], known: str | None
) -> None:
    size, root = fields["old_size"], fields["old_root"]
    if known is not None and known != root:
        raise ValueError("the earlier root is not the one that you know")
    if not verify_consistency(
        size, bytes.fromhex(root), head.size, bytes.fromhex(head.root), hashes
    ):
        raise ValueError(f"the log of {head.size} entries does not extend that of {size}")


def _split(joined: bytes) -> list[bytes]:
    if len(joined) % HASH_BYTES:
        raise ValueError("its hashes are not whole")
    return [joined[at : at + HASH_BYTES] for at in range(0, len(joined), HASH_BYTES)]
