"""The private log: counted by nobody outside, and fixed by the ledger all the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import Engine

from privacy.ledger import Ledger
from privacy.ledger_events import RESERVED, TRAINED
from privacy.ledger_verify import Report, verify_export, verify_with_private
from privacy.private_log import PRIVATE_ROOT, PrivateLog
from privacy.signing import Identity
from tests.privacy.ledger_support import LOG_ID, opened, run, ticking, trained

IDENTITY = Identity.generate()
WITHDRAWN = {"subjects": 1, "recordings": 3}


def history(
    engine: Engine, withdrawals: dict[int, int], rounds: int = 4
) -> tuple[Ledger, PrivateLog]:
    """A site's logs after `rounds` rounds, with that many withdrawals before some of them."""
    ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
    private = PrivateLog(engine, IDENTITY, LOG_ID, ticking())
    runs = [run(round_) for round_ in range(1, rounds + 1)]
    for done, this in enumerate(runs, start=1):
        for _ in range(withdrawals.get(done, 0)):
            private.append("consent.withdrawn", WITHDRAWN)
        ledger.append(RESERVED, this.fields())
        bound = {PRIVATE_ROOT: private.bind(this.job, this.round)}
        ledger.append(TRAINED, trained(this, runs[:done]).fields() | bound)
    return ledger, private


def verified(folder: Path, ledger: Ledger, private: PrivateLog) -> tuple[Report, Report]:
    ledger.export(folder / "ledger.jsonl")
    private.export(folder / "private.jsonl")
    trusted = [IDENTITY.public]
    return verify_with_private(folder / "ledger.jsonl", folder / "private.jsonl", trusted)


def test_withdrawals_do_not_change_the_ledgers_size(tmp_path: Path) -> None:
    with opened(tmp_path) as engine, opened(tmp_path, "other.db") as other:
        quiet, _ = history(engine, {})
        busy, private = history(other, {2: 1, 3: 5})
        assert quiet.size == busy.size
        report, own = verified(tmp_path, busy, private)
        assert (report.valid, own.valid) == (True, True), (report.reason, own.reason)
        assert own.entries == 4 + 6
        kinds = [entry.kind for entry in private.entries()]
        assert kinds.count("consent.withdrawn") == 6


def test_a_root_tells_nothing_of_what_is_under_it(tmp_path: Path) -> None:
    """Equal private histories give unequal roots: each holds 256 bits that nobody else has."""
    roots = []
    for name in ("a", "b"):
        with opened(tmp_path, f"{name}.db") as engine:
            private = PrivateLog(engine, IDENTITY, LOG_ID, ticking())
            roots.append(private.bind("0b0b", 1))
            salt = private.entries()[0].fields["salt"]
            assert len(bytes.fromhex(salt)) == 32
    assert roots[0] != roots[1]


def test_a_binding_that_a_crash_left_unused_does_no_harm(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        ledger, private = history(engine, {1: 1})
        private.bind("0b0b", 5)
        private.append("consent.withdrawn", WITHDRAWN)
        report, own = verified(tmp_path, ledger, private)
        assert (report.valid, own.valid) == (True, True)


Forge = Callable[[Path, Path], None]


def forged_private(folder: Path, withdrawals: dict[int, int], rounds: int = 4) -> None:
    """The site writes its private log anew, correctly signed, after the fact."""
    with opened(folder, "forged.db") as engine:
        _, private = history(engine, withdrawals, rounds)
        private.export(folder / "private.jsonl")


def cut_private(folder: Path) -> None:
    """The last withdrawal and all after it never happened, says the site's key."""
    kept = [json.loads(line) for line in (folder / "private.jsonl").read_bytes().splitlines()[1:-1]]
    assert kept
    with opened(folder, "cut.db") as engine:
        private = PrivateLog(engine, IDENTITY, LOG_ID, ticking())
        private.append("consent.withdrawn", WITHDRAWN)
        private.export(folder / "private.jsonl")


@pytest.mark.parametrize(
    "forge",
    [
        lambda folder: forged_private(folder, {2: 1}),
        lambda folder: forged_private(folder, {2: 1, 3: 1}, rounds=3),
        cut_private,
    ],
    ids=["a-withdrawal-left-out", "last-round-left-out", "tail-cut"],
)
def test_a_private_log_written_anew_is_found(tmp_path: Path, forge: Callable[[Path], None]) -> None:
    with opened(tmp_path) as engine:
        ledger, private = history(engine, {2: 1, 3: 1})
        assert verified(tmp_path, ledger, private)[1].valid
    forge(tmp_path)
    trusted = [IDENTITY.public]
    assert verify_export(tmp_path / "private.jsonl", trusted).valid  # alone it looks whole
    report, own = verify_with_private(
        tmp_path / "ledger.jsonl", tmp_path / "private.jsonl", trusted
    )
    assert report.valid
    assert not own.valid
    assert "fixed" in own.reason


def test_a_log_of_another_site_is_not_its_private_log(tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        ledger, private = history(engine, {})
        verified(tmp_path, ledger, private)
        PrivateLog(engine, IDENTITY, "site/south", ticking()).export(tmp_path / "private.jsonl")
        _, own = verify_with_private(
            tmp_path / "ledger.jsonl", tmp_path / "private.jsonl", [IDENTITY.public]
        )
    assert (own.valid, own.reason) == (False, "it is not the private log of that ledger")
