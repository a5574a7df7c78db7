"""Checkpoints between two logs: honest parties never trip, and no party can go back on a head."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.merkle import EMPTY_ROOT, MerkleTree
from privacy.parcel import HeadProof
from privacy.peer_heads import PEER_HEAD_CODES, Checkpoint, PeerHeads
from privacy.signing import Identity
from privacy.store import open_engine
from tests.privacy.ledger_support import opened, ticking

IDENTITY = Identity.generate()
PEER = "coordinator/1"


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    made = open_engine(url)
    yield made
    made.dispose()


def open_heads(engine: Engine) -> PeerHeads:
    return Ledger(engine, IDENTITY, "site/north", ticking()).peer(PEER)


def tree_of(entries: int, letter: str = "a") -> MerkleTree:
    tree = MerkleTree()
    for number in range(entries):
        tree.append(f"{letter}{number}".encode())
    return tree


def shown(tree: MerkleTree, size: int, *proved: int, peer_size: int = 0) -> Checkpoint:
    """The head of `tree` at `size`, with proofs from the heads of sizes `proved`."""
    proofs = tuple(
        HeadProof(old, tuple(one.hex() for one in tree.consistency_proof(old, size)))
        for old in proved
    )
    return Checkpoint(size, tree.root(size).hex(), peer_size, proofs)


def code_of(act: Callable[[], object]) -> str:
    with pytest.raises(LedgerError) as refusal:
        act()
    return refusal.value.code


def test_growth_that_is_proved_is_taken_and_kept_over_a_restart(engine: Engine) -> None:
    tree, heads = tree_of(9), open_heads(engine)
    assert heads.held() == 0
    heads.take(shown(tree, 3))
    heads.take(shown(tree, 3))  # delivered twice
    again = open_heads(engine)
    again.take(shown(tree, 9, 3))
    assert (again.held(), open_heads(engine).held()) == (9, 9)
    again.take(shown(tree, 3))  # an old statement, delivered late, changes nothing
    assert again.held() == 9


TREE = tree_of(12)
OTHER = tree_of(12, "b")
WRONG = {
    "tail-cut": (shown(TREE, 5, 3), "peer-head-smaller"),
    "split-at-the-same-size": (shown(OTHER, 7), "peer-head-split"),
    "split-and-grown": (shown(OTHER, 12, 7), "peer-head-split"),
    "no-proof": (shown(TREE, 12), "peer-head-unproven"),
    "proof-from-another-head": (shown(TREE, 12, 6), "peer-head-unproven"),
    "empty-proof": (
        dataclasses.replace(shown(TREE, 12), proofs=(HeadProof(7, ()),)),
        "peer-head-split",
    ),
    "proof-of-letters": (
        dataclasses.replace(shown(TREE, 12), proofs=(HeadProof(7, ("zz",)),)),
        "peer-head-split",
    ),
    "negative": (Checkpoint(-1, "a" * 64), "peer-head-invalid"),
    "root-too-short": (Checkpoint(12, "a" * 63), "peer-head-invalid"),
    "root-in-capitals": (Checkpoint(12, "A" * 64), "peer-head-invalid"),
    "empty-with-a-root": (Checkpoint(0, "a" * 64), "peer-head-invalid"),
    "it-holds-more-of-ours-than-we-have": (shown(TREE, 12, 7, peer_size=1), "ledger-behind"),
}


@pytest.mark.parametrize("defect", WRONG)
def test_a_peer_that_goes_back_on_a_head_is_refused(engine: Engine, defect: str) -> None:
    wrong, code = WRONG[defect]
    heads = open_heads(engine)
    heads.take(shown(TREE, 7))
    assert code_of(lambda: heads.take(wrong)) == code
    assert code in PEER_HEAD_CODES
    # Nothing of it was kept: it fails again, and the honest continuation does not.
    assert code_of(lambda: open_heads(engine).take(wrong)) == code
    heads.take(shown(TREE, 12, 7))


def test_a_noted_head_is_believed_only_until_the_next_proof(engine: Engine) -> None:
    heads = open_heads(engine)
    heads.take(shown(TREE, 4))
    heads.note(6, TREE.root(6).hex())
    assert heads.held() == 4  # still the one that the peer must prove from
    assert code_of(lambda: heads.take(shown(TREE, 9, 6))) == "peer-head-unproven"
    assert code_of(lambda: heads.take(shown(TREE, 9, 4))) == "peer-head-unproven"
    heads.take(shown(TREE, 9, 4, 6))
    assert heads.held() == 9
    heads.note(10, OTHER.root(10).hex())
    assert code_of(lambda: heads.take(shown(TREE, 12, 9, 10))) == "peer-head-split"


def test_an_empty_log_has_one_head(engine: Engine) -> None:
    heads = open_heads(engine)
    heads.take(Checkpoint(0, EMPTY_ROOT.hex()))
    heads.take(shown(TREE, 5, 0))
    assert heads.held() == 5


class Party:
    """One side: a ledger on disk, which may be opened anew at any time."""

    def __init__(self, folder: Path, name: str, peer: str) -> None:
        self.engine = open_engine(f"sqlite:///{folder / name}.db")
        self.identity = Identity.generate()
        self.names = (name, peer)
        self.reopen()

    def reopen(self) -> None:
        self.ledger = Ledger(self.engine, self.identity, self.names[0], ticking())
        self.heads = self.ledger.peer(self.names[1])


STEPS = ("append", "restart", "send", "lose", "send-late", "note")


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 1)), min_size=5, max_size=30)
)
def test_honest_parties_never_trip_whatever_is_lost(steps: list[tuple[str, int]]) -> None:
    """Losses, crashes between showing and taking, and unproved heads raise no false alarm.

    Each side has one message on its way at a time: a later one takes the place of a late one.
    """
    with tempfile.TemporaryDirectory() as folder:
        parties = [Party(Path(folder), "one", "two"), Party(Path(folder), "two", "one")]
        late: list[list[Checkpoint]] = [[], []]
        for step, side in steps:
            sender, receiver = parties[side], parties[1 - side]
            if step == "append":
                sender.ledger.append("round.opened", {"round": 1})
            elif step == "restart":
                sender.reopen()
            elif step == "note":
                late[side].clear()
                head = sender.ledger.tree_head()
                sender.heads.remember_shown(head.size)
                receiver.heads.note(head.size, head.root)
            elif step == "send-late" and late[side]:
                receiver.heads.take(late[side].pop(0))
            else:
                checkpoint = sender.heads.show()
                if step == "send":
                    late[side].clear()
                    receiver.heads.take(checkpoint)
                else:
                    late[side][:] = [checkpoint]
        for party in parties:
            party.engine.dispose()


def test_proofs_stay_few_while_the_other_answers(tmp_path: Path) -> None:
    parties = [Party(tmp_path, "one", "two"), Party(tmp_path, "two", "one")]
    for _ in range(10):
        for sender, receiver in (parties, parties[::-1]):
            sender.ledger.append("round.opened", {"round": 1})
            checkpoint = sender.heads.show()
            assert len(checkpoint.proofs) <= 2
            receiver.heads.take(checkpoint)
    # One that only refuses still says what it holds.
    for _ in range(10):
        parties[0].ledger.append("round.opened", {"round": 1})
        checkpoint = parties[0].heads.show()
        assert len(checkpoint.proofs) <= 1
        parties[1].heads.take(checkpoint)
        parties[0].heads.acknowledge(parties[1].heads.held())
    for party in parties:
        party.engine.dispose()


def test_two_logs_have_heads_of_their_own(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        north, south = (
            Ledger(engine, IDENTITY, f"site/{name}", ticking()) for name in ("north", "south")
        )
        north.peer(PEER).take(shown(TREE, 7))
        south.peer(PEER).take(shown(OTHER, 3))
        north.peer("coordinator/2").take(shown(OTHER, 2))
        assert [north.peer(PEER).held(), south.peer(PEER).held()] == [7, 3]
