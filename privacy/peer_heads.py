"""Checkpoints: two parties show each other their logs' heads, and neither can go back on one.

With each head a party shows it proves (RFC 9162 section 2.1.4) that its log extends every head
that the other may hold, and says which head of the other it holds itself. A log that was cut, or
that shows different parties different histories, cannot go on: no proof joins its next head to the
last (the gossip of RFC 6962 section 7.3, between parties that talk each round anyway).

What the other may hold is every head shown since the last that it said it holds: a crash on either
side between showing, taking and answering loses nothing. Heads and sizes are kept for good.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from privacy import ledger_tables as tables
from privacy.errors import LedgerError
from privacy.merkle import EMPTY_ROOT, verify_consistency
from privacy.parcel import HeadProof
from privacy.store import reading, writing

if TYPE_CHECKING:
    from privacy.ledger import Ledger

_ROOT = re.compile(r"[0-9a-f]{64}")
PEER_HEAD_CODES = frozenset(
    {
        "peer-head-invalid",
        "peer-head-smaller",
        "peer-head-split",
        "peer-head-unproven",
        "ledger-behind",
    }
)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What one party states to another about both their logs.

    Attributes:
        size: entries of its own log.
        root: hex Merkle root over them.
        peer_size: size of the last head of the other's log that it holds; 0 for none.
        proofs: that its log extends the heads which the other may hold.
    """

    size: int
    root: str
    peer_size: int = 0
    proofs: tuple[HeadProof, ...] = ()


class PeerHeads:
    """Heads exchanged between `ledger` and the log `peer` of one other party.

    Its tables lie in `engine`, beside the ledger's. The errors that it raises about the other are
    LedgerErrors with one of `PEER_HEAD_CODES`; nothing of that checkpoint is then kept, so that
    the evidence stays what it was.
    """

    def __init__(self, engine: Engine, ledger: Ledger, peer: str) -> None:
        self._engine = engine
        self._ledger = ledger
        self._key = (ledger.log_id, peer)

    def held(self) -> int:
        """Size of the smallest head of the other's log that still waits for a proof, or 0.

        That is the last one taken, unless others were noted after it.
        """
        with reading(self._engine) as session:
            heads = tables.peer_heads(session, *self._key)
        return min((head.size for head in heads if head.open), default=0)

    def acknowledge(self, peer_size: int) -> None:
        """The other has said, signed, that `held` is `peer_size` there: it needs no older proof."""
        if any(size < peer_size for size in self._shown()):
            with writing(self._engine) as session:
                tables.forget_shown(session, *self._key, below=peer_size)

    def remember_shown(self, size: int) -> list[int]:
        """Note, before it is sent, that the other will be shown our head of `size` entries.

        Returns the sizes that it may hold.
        """
        if size not in self._shown():
            with writing(self._engine) as session:
                if size not in tables.shown_sizes(session, *self._key):
                    tables.add_shown_size(session, *self._key, size)
        return self._shown()

    def show(self) -> Checkpoint:
        """Our head as it is now, with the proofs that the other needs; remembered as shown."""
        head = self._ledger.tree_head()
        shown = self.remember_shown(head.size)
        proofs = tuple(self._proof(size, head.size) for size in shown if size < head.size)
        return Checkpoint(head.size, head.root, self.held(), proofs)

    def take(self, checkpoint: Checkpoint) -> None:
        """Keep the other's head, which must be proved to extend every head it has shown.

        Raises LedgerError: "peer-head-smaller" (it was cut), "peer-head-split" (it shows another
        history), "peer-head-unproven" (it proves nothing about a head that it has shown),
        "peer-head-invalid" (no head at all), and "ledger-behind" where it holds more entries of
        our own log than we do: then ours was cut.
        """
        size = self._ledger.size
        if checkpoint.peer_size > size:
            raise _fault(
                "ledger-behind",
                f"the other party holds {checkpoint.peer_size} entries of a log of {size}",
            )
        proofs = {proof.size: proof.hashes for proof in checkpoint.proofs}
        if not self._has(checkpoint.size, checkpoint.root):
            with writing(self._engine) as session:
                self._extend(session, checkpoint.size, checkpoint.root, proofs)
        self.acknowledge(checkpoint.peer_size)

    def note(self, size: int, root: str) -> None:
        """Keep a head that came without proofs; the next checkpoint must prove it as well.

        Raises LedgerError as `take` does, but for what only a proof can tell.
        """
        if not self._has(size, root):
            with writing(self._engine) as session:
                self._extend(session, size, root, None)

    def _shown(self) -> list[int]:
        with reading(self._engine) as session:
            return tables.shown_sizes(session, *self._key)

    def _has(self, size: int, root: str) -> bool:
        """Whether this very head was kept before, as when a statement is delivered again."""
        with reading(self._engine) as session:
            heads = tables.peer_heads(session, *self._key)
        return any((head.size, head.root) == (size, root) for head in heads)

    def _proof(self, old_size: int, new_size: int) -> HeadProof:
        hashes = self._ledger.consistency_proof(old_size, new_size)
        return HeadProof(old_size, tuple(one.hex() for one in hashes))

    def _extend(
        self,
        session: Session,
        size: int,
        root: str,
        proofs: dict[int, tuple[str, ...]] | None,
    ) -> None:
        if size < 0 or not _ROOT.fullmatch(root) or (size == 0 and root != EMPTY_ROOT.hex()):
            raise _fault("peer-head-invalid", "the other party states a head that cannot be one")
        heads = tables.peer_heads(session, *self._key)
        if heads and size < heads[-1].size:
            raise _fault(
                "peer-head-smaller",
                f"the other party shows {size} entries; it has shown {heads[-1].size}",
            )
        if heads and size == heads[-1].size:
            if root == heads[-1].root:
                return  # taken by another thread meanwhile
            raise _fault("peer-head-split", f"two histories of {size} entries were shown")
        if proofs is not None:
            for head in (head for head in heads if head.open):
                _require_extension(head.size, head.root, size, root, proofs.get(head.size))
            tables.close_peer_heads(session, *self._key)
        tables.add_peer_head(session, *self._key, size=size, root=root)


def _require_extension(
    old_size: int, old_root: str, size: int, root: str, hashes: Sequence[str] | None
) -> None:
    if hashes is None:
        raise _fault(
            "peer-head-unproven", f"nothing proves that {size} entries extend the {old_size} shown"
        )
    well_formed = all(_ROOT.fullmatch(one) for one in hashes)
    if not well_formed or not verify_consistency(
        old_size,
        bytes.fromhex(old_root),
        size,
        bytes.fromhex(root),
        [bytes.fromhex(one) for one in hashes],
    ):
        raise _fault(
            "peer-head-split", f"{size} entries do not extend the {old_size} that were shown before"
        )


def _fault(code: str, problem: str) -> LedgerError:
    return LedgerError(
        problem,
        remedy="take no further part, keep both databases as evidence, and compare the two "
        "ledgers' exports",
        code=code,
    )
