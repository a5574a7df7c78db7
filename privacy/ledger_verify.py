"""Offline verification of an exported ledger: needs the file, and trusts nobody who wrote it.

Checks the encoding, signature, place and link of every entry and the Merkle root under the signed
head, and derives every ε again with `privacy.accountant`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import BinaryIO

from cryptography.exceptions import UnsupportedAlgorithm

from privacy.errors import AccountingError, AuricleError, LedgerError, SignatureError
from privacy.ledger_entry import (
    HEAD_TYPE,
    MAX_SEALED_BYTES,
    Chain,
    Entry,
    EntryError,
    SignedTreeHead,
    TreeHead,
    export_header,
)
from privacy.ledger_signatures import with_signatures
from privacy.ledger_spend import DerivedEpsilon, SpendBook
from privacy.private_log import BOUND, PRIVATE_ROOT, first_unbound, private_log_id
from privacy.signing import PublicIdentity

# A damaged PEM may name an algorithm that nobody has, which `cryptography` tells apart.
_UNREADABLE = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    RecursionError,
    UnsupportedAlgorithm,
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What an export is worth.

    Attributes:
        log_id: the log's name, None where not even the header can be read.
        key_id: the key that signed it; where the log was handed on, the last.
        key_trusted: whether the verifier gave that key; without keys of his own he learns only
            that whoever holds `key_id` wrote this log.
        entries: how many entries verified, from the first.
        root: hex Merkle root over them.
        valid: whether everything holds.
        first_bad: number of the first entry that is wrong or missing; None where the fault is
            not one entry's.
        reason: what is wrong; "" when valid.
        epsilons: ε of each (site, purpose), derived from the verified entries.
    """

    log_id: str | None
    key_id: str | None
    key_trusted: bool
    entries: int
    root: str | None
    valid: bool
    first_bad: int | None
    reason: str
    epsilons: tuple[DerivedEpsilon, ...]


def verify_export(
    path: Path,
    trusted: Collection[PublicIdentity] | None = None,
    known_heads: Collection[TreeHead] = (),
) -> Report:
    """Verify a file that `Ledger.export` wrote.

    Args:
        path: the export.
        trusted: keys that may have written it; None takes the key in its header, and says so.
        known_heads: tree heads that this log has shown before (`Ledger.noted_heads`, an older
            export). Only they can show that its tail was cut or its history written anew by
            whoever holds the key. Heads of other logs are passed over.

    Faults of the content are in the report. Raises LedgerError "ledger-export-missing" when the
    file cannot be opened.
    """
    with _open_export(path) as file:
        return _Verification(trusted, known_heads).run(file)


def verify_with_private(
    path: Path, private: Path, trusted: Collection[PublicIdentity] | None = None
) -> tuple[Report, Report]:
    """Verify a site's ledger and its private log, and that the first fixes the second.

    The private log's report is not valid where its own content is at fault, where it is not signed
    by the ledger's key, or where a root that a round put into the ledger is not its own: then it
    was cut, edited or written anew. Raises LedgerError as `verify_export` does.
    """
    ledger, own = _Verification(trusted, ()), _Verification(trusted, ())
    with _open_export(path) as file:
        report = ledger.run(file)
    with _open_export(private) as file:
        found = own.run(file)
    if not (report.valid and found.valid):
        return report, found
    if (found.log_id, found.key_id) != (private_log_id(report.log_id or ""), report.key_id):
        reason = "it is not the private log of that ledger"
    elif (entry := first_unbound(ledger.committed, own.bound)) is not None:
        reason = f"it is not what entry {entry} of the ledger fixed: it was cut or changed"
    else:
        return report, found
    return report, dataclasses.replace(found, valid=False, reason=reason)


def _open_export(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise LedgerError(
            f"the export {path} cannot be opened: {error.strerror}",
            remedy="give the path of a file written by `auricle ledger export`",
            code="ledger-export-missing",
        ) from error


class _Verification:
    def __init__(
        self, trusted: Collection[PublicIdentity] | None, known_heads: Collection[TreeHead]
    ) -> None:
        self._trusted = trusted
        self._known_heads = sorted(known_heads, key=lambda head: head.size)
        self._chain: Chain | None = None
        self._spends = SpendBook("")
        self.committed: list[tuple[int, str]] = []
        """(entry, root of the private log) of each commitment, in order."""
        self.bound: list[str] = []
        """Root after each `round.bound`, where this is a private log."""

    def run(self, file: BinaryIO) -> Report:
        fault: AuricleError | None = None
        try:
            lines = _lines(file)
            self._chain = self._read_header(next(lines, b""))
            self._spends = SpendBook(self._chain.log_id)
            self._read_body(lines, self._chain)
            self._require_trusted(self._chain)
        except LedgerError as error:
            fault = error
        try:
            return self._report(fault, self._spends.derive())
        except AccountingError as error:
            return self._report(fault or error, ())

    def _read_header(self, line: bytes) -> Chain:
        try:
            header = json.loads(line)
            key = PublicIdentity.from_pem(header["public_pem"])
            log_id = header["log_id"]
            if not isinstance(log_id, str) or export_header(log_id, key) + b"\n" != line:
                raise ValueError("it is not written as an export's")
        except (*_UNREADABLE, SignatureError) as error:
            raise _fault(f"the header cannot be read: {error}") from error
        return Chain(log_id, key)

    def _require_trusted(self, chain: Chain) -> None:
        """The first key vouches for its successors, the last for all that its head covers."""
        if self._trusted is not None and not self._trusts(chain):
            names = dict.fromkeys((chain.first_key.key_id, chain.key.key_id))
            raise _fault(
                f"key {' and '.join(names)}, which signed it, is not among the trusted keys"
            )

    def _trusts(self, chain: Chain) -> bool:
        return any(key in (self._trusted or ()) for key in (chain.first_key, chain.key))

    def _read_body(self, lines: Iterator[bytes], chain: Chain) -> None:
        signatures = with_signatures(lines, chain.key)
        for line, signed in signatures:
            if not line.endswith(b"\n"):
                raise _missing("the export is cut off in the middle of a line", chain)
            # An entry's envelope cannot contain the head's type: it is base64 all through.
            if HEAD_TYPE.encode() in line:
                head = SignedTreeHead.from_sealed(line[:-1], chain.key)
                if next(signatures, None) is not None:
                    raise _fault("there are lines after the signed tree head")
                self._check_head(head, chain)
                return
            self._take(chain.open_next(line[:-1], signed=signed), chain)
        raise _missing("the export ends without its signed tree head", chain)

    def _take(self, entry: Entry, chain: Chain) -> None:
        self._spends.note(entry)
        if entry.kind == BOUND:
            self.bound.append(chain.head.root)
        elif PRIVATE_ROOT in entry.fields:
            self.committed.append((entry.index, str(entry.fields[PRIVATE_ROOT])))

    def _check_head(self, head: SignedTreeHead, chain: Chain) -> None:
        if head.log_id != chain.log_id:
            raise _fault(f"the signed tree head is that of another log, {head.log_id}")
        size = chain.tree.size
        if head.size > size:
            raise _missing(f"the signed tree head covers {head.size} entries, of {size}", chain)
        if head.size < size:
            raise EntryError(
                f"the signed tree head covers only {head.size} of {size} entries", index=head.size
            )
        if head.root != chain.head.root:
            raise _fault("the entries are not those that the signed tree head covers")
        agreed = 0
        for known in self._known_heads:
            if known.log_id != chain.log_id:
                continue
            if known.size > size:
                raise _missing(f"this log has shown {known.size} entries; {size} are left", chain)
            if chain.tree.root(known.size).hex() != known.root:
                raise _fault(
                    f"this log has shown another history: entries {agreed} to {known.size - 1} "
                    "were not these"
                )
            agreed = known.size

    def _report(self, fault: AuricleError | None, epsilons: tuple[DerivedEpsilon, ...]) -> Report:
        chain = self._chain
        first_bad = fault.index if isinstance(fault, EntryError) else None
        verified = chain.tree.size if chain else 0
        if first_bad is not None:
            verified = min(verified, first_bad)
        return Report(
            log_id=chain.log_id if chain else None,
            key_id=chain.key.key_id if chain else None,
            key_trusted=chain is not None and self._trusts(chain),
            entries=verified,
            root=chain.tree.root(verified).hex() if chain else None,
            valid=fault is None,
            first_bad=first_bad,
            reason=fault.problem if fault else "",
            epsilons=epsilons,
        )


def _lines(file: BinaryIO) -> Iterator[bytes]:
    # A longer line comes in pieces without an end of line, which the readers refuse.
    while line := file.readline(MAX_SEALED_BYTES):
        yield line


def _fault(problem: str) -> LedgerError:
    return LedgerError(problem, remedy="ask the log's owner for a fresh export, and keep this one")


def _missing(problem: str, chain: Chain) -> EntryError:
    return EntryError(problem, index=chain.tree.size)
