"""Proof files: what they show holds offline, and no changed byte passes."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_proof import check_proof, prove_entry, prove_growth
from privacy.merkle import MerkleTree
from privacy.signing import Identity
from tests.privacy.ledger_support import LOG_ID, opened, ticking

IDENTITY = Identity.generate()
TRUSTED = [IDENTITY.public]


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with opened(tmp_path_factory.mktemp("proofs")) as engine:
        made = Ledger(engine, IDENTITY, LOG_ID, ticking())
        for number in range(11):
            made.append("round.opened", {"round": number})
        yield made


def test_each_entry_is_proved_under_the_signed_head(ledger: Ledger) -> None:
    for entry in ledger.entries():
        report = check_proof(prove_entry(ledger, entry.index), TRUSTED)
        assert report.entry == entry
        assert (report.size, report.root) == (11, ledger.tree_head().root)
        assert report.key_trusted


def test_growth_is_proved_from_every_earlier_size(ledger: Ledger) -> None:
    for size in range(12):
        data = prove_growth(ledger, size)
        report = check_proof(data, TRUSTED, ledger.root(size))
        assert (report.old_size, report.size, report.entry) == (size, 11, None)
        with pytest.raises(LedgerError) as refusal:
            check_proof(data, TRUSTED, "0" * 64)
        assert refusal.value.code == "ledger-proof"


def test_without_a_key_the_report_says_so(ledger: Ledger) -> None:
    assert not check_proof(prove_entry(ledger, 3)).key_trusted
    with pytest.raises(LedgerError):
        check_proof(prove_entry(ledger, 3), [Identity.generate().public])


def test_there_is_no_proof_of_what_never_was(ledger: Ledger) -> None:
    for ask in (lambda: prove_entry(ledger, 11), lambda: prove_growth(ledger, 12)):
        with pytest.raises(LedgerError) as refusal:
            ask()
        assert refusal.value.code == "ledger-range"


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_no_edited_byte_passes(ledger: Ledger, data: st.DataObject) -> None:
    make = data.draw(st.sampled_from([prove_entry, prove_growth]))
    proof = make(ledger, data.draw(st.integers(0, 10)))
    at = data.draw(st.integers(0, len(proof) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != proof[at]))
    with pytest.raises(LedgerError) as refusal:
        check_proof(proof[:at] + bytes([byte]) + proof[at + 1 :], TRUSTED)
    assert refusal.value.code == "ledger-proof"


def test_an_entry_of_another_place_or_log_does_not_pass(ledger: Ledger, tmp_path: Path) -> None:
    mine = json.loads(prove_entry(ledger, 3))
    other = json.loads(prove_entry(ledger, 4))
    with opened(tmp_path) as engine:
        south = Ledger(engine, IDENTITY, "site/south", ticking())
        for number in range(11):
            south.append("round.opened", {"round": number})
        foreign = json.loads(prove_entry(south, 3))
    for field, source in (
        ("entry", other),
        ("hashes", other),
        ("entry", foreign),
        ("head", foreign),
    ):
        with pytest.raises(LedgerError):
            check_proof(rfc8785.dumps(mine | {field: source[field]}), TRUSTED)


def test_a_proof_among_a_hundred_thousand_takes_less_than_a_kilobyte() -> None:
    tree = MerkleTree()
    for number in range(100_000):
        tree.append(number.to_bytes(4, "big"))
    longest = max(len(tree.inclusion_proof(index)) for index in range(0, 100_000, 997))
    assert len(base64.b64encode(bytes(32 * longest))) <= 1000
