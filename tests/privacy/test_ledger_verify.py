"""Offline verification: every defect of an export is found, named, and placed; no clean one is."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from privacy.accountant import Composition, epsilon, epsilon_sec
from privacy.budget import Budget, BudgetCaps
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.ledger_entry import (
    ENTRY_FORMAT,
    ENTRY_TYPE,
    NO_PREVIOUS,
    Chain,
    SignedTreeHead,
    TreeHead,
    export_header,
)
from privacy.ledger_events import RESERVED, STOPPED, TRAINED, MechanismRun
from privacy.ledger_spend import ALL_PURPOSES
from privacy.ledger_verify import Report, verify_export
from privacy.merkle import MerkleTree
from privacy.plan import PLAN_FORMAT_V1, AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.signing import Identity, seal_statement
from tests.privacy.ledger_support import (
    LOG_ID,
    PURPOSE,
    SITE,
    export_of,
    opened,
    run,
    ticking,
    train_rounds,
    trained,
)

IDENTITY = Identity.generate()
STRANGER = Identity.generate()
Lines = list[bytes]
ROUNDS = 3
ENTRIES = 2 * ROUNDS


class Logs:
    """One log at two moments, and a foreign log of the same key, as export lines."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with opened(folder) as engine:
            ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
            train_rounds(ledger, ROUNDS - 1)
            self.old_head = ledger.export(folder / "old.jsonl")
            self.old = lines_of(folder / "old.jsonl")
            ledger.append(RESERVED, run(ROUNDS).fields())
            runs = [run(round_) for round_ in range(1, ROUNDS + 1)]
            ledger.append(TRAINED, trained(runs[-1], runs).fields())
            self.head = ledger.export(folder / "new.jsonl")
            self.new = lines_of(folder / "new.jsonl")
            other = Ledger(engine, IDENTITY, "site/south", ticking())
            train_rounds(other, ROUNDS)
            other.export(folder / "other.jsonl")
            self.other = lines_of(folder / "other.jsonl")

    def check(self, lines: Lines, **options: object) -> Report:
        path = self.folder / "checked.jsonl"
        path.write_bytes(b"".join(lines))
        return verify_export(path, [IDENTITY.public], **options)  # type: ignore[arg-type]


def lines_of(path: Path) -> Lines:
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Logs:
    return Logs(tmp_path_factory.mktemp("logs"))


def test_a_clean_export_verifies(logs: Logs) -> None:
    report = logs.check(logs.new, known_heads=[logs.old_head, logs.head])
    assert (report.valid, report.first_bad, report.reason) == (True, None, "")
    assert (report.log_id, report.entries, report.root) == (LOG_ID, ENTRIES, logs.head.root)
    assert (report.key_id, report.key_trusted) == (IDENTITY.public.key_id, True)


def test_epsilon_is_derived_from_the_reservations(logs: Logs) -> None:
    (derived,) = logs.check(logs.new).epsilons
    once = run(1).event()
    assert derived.epsilon_loc == epsilon([once] * ROUNDS, 1e-6)
    assert derived.epsilon_sec < derived.epsilon_loc
    assert derived.claimed_loc == pytest.approx(derived.epsilon_loc)
    assert (derived.site, derived.purpose, derived.delta) == (SITE, PURPOSE, 1e-6)
    assert (derived.reserved, derived.trained, derived.honest_sites) == (ROUNDS, ROUNDS, 3)


def test_without_keys_the_report_says_that_nobody_vouched(logs: Logs) -> None:
    report = verify_export(logs.folder / "new.jsonl")
    assert report.valid
    assert not report.key_trusted


def test_a_key_that_is_not_trusted_is_refused(logs: Logs) -> None:
    report = verify_export(logs.folder / "new.jsonl", [STRANGER.public])
    assert not report.valid
    assert "not among the trusted keys" in report.reason
    assert not report.key_trusted


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LedgerError) as refusal:
        verify_export(tmp_path / "nothing.jsonl")
    assert refusal.value.code == "ledger-export-missing"


# --- defects of the file, by name. Line 0 is the header, line n + 1 is entry n, the last the head.


def flipped(line: bytes) -> bytes:
    return line[:40] + bytes([line[40] ^ 1]) + line[41:]


def loosened(line: bytes) -> bytes:
    """The same envelope, padded inside its base64 so that lax decoders read the same bytes."""
    return line.replace(b'"sig":"', b'"sig":"=')


def unread_bits_set(line: bytes) -> bytes:
    """The same signature bytes in another base64: the last digit's unread bits set."""
    before, after = line.rsplit(b"==", 1)
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    return before[:-1] + bytes([alphabet[alphabet.index(before[-1]) | 1]]) + b"==" + after


DEFECTS: dict[str, tuple[Callable[[Logs], Lines], int | None]] = {
    "entry-edited": (lambda k: [*k.new[:3], flipped(k.new[3]), *k.new[4:]], 2),
    "signature-padded": (lambda k: [*k.new[:3], loosened(k.new[3]), *k.new[4:]], 2),
    "signature-recoded": (lambda k: [*k.new[:3], unread_bits_set(k.new[3]), *k.new[4:]], 2),
    "space-in-envelope": (
        lambda k: [*k.new[:3], k.new[3].replace(b",", b", ", 1), *k.new[4:]],
        2,
    ),
    "entry-deleted": (lambda k: k.new[:3] + k.new[4:], 2),
    "first-entry-deleted": (lambda k: k.new[:1] + k.new[2:], 0),
    "last-entry-deleted": (lambda k: k.new[:-2] + k.new[-1:], ENTRIES - 1),
    "entries-swapped": (lambda k: [*k.new[:2], k.new[3], k.new[2], *k.new[4:]], 1),
    "entry-replayed": (lambda k: [*k.new[:3], k.new[2], *k.new[3:]], 2),
    "last-entry-replayed": (lambda k: [*k.new[:-1], *k.new[-2:]], ENTRIES),
    "entry-of-another-log": (lambda k: [*k.new[:3], k.other[3], *k.new[4:]], 2),
    "head-missing": (lambda k: k.new[:-1], ENTRIES),
    "head-of-an-older-state": (lambda k: [*k.new[:-1], k.old[-1]], ENTRIES - 2),
    "head-of-another-log": (lambda k: [*k.new[:-1], k.other[-1]], None),
    "head-edited": (lambda k: [*k.new[:-1], flipped(k.new[-1])], None),
    "head-twice": (lambda k: [*k.new, k.new[-1]], None),
    "lines-after-the-head": (lambda k: [*k.new, k.new[1]], None),
    "cut-inside-a-line": (lambda k: [*k.new[:4], k.new[4][:50]], 3),
    "final-newline-cut": (lambda k: [*k.new[:-1], k.new[-1][:-1]], ENTRIES),
    "carriage-returns": (lambda k: [line.replace(b"\n", b"\r\n") for line in k.new], None),
    "empty-line": (lambda k: [*k.new[:3], b"\n", *k.new[3:]], 2),
    "line-without-end": (lambda k: [*k.new[:3], b"x" * 300_000, *k.new[3:]], 2),
    "not-json": (lambda k: [*k.new[:3], b"\xff\xfe\n", *k.new[4:]], 2),
    "header-missing": (lambda k: k.new[1:], None),
    "header-edited": (lambda k: [k.new[0].replace(b"north", b"south"), *k.new[1:]], 0),
    "header-spaced": (lambda k: [k.new[0].replace(b",", b", "), *k.new[1:]], None),
    "header-key-of-no-algorithm": (
        lambda k: [k.new[0].replace(b"K2VwAyEA", b"K2VzAyEA"), *k.new[1:]],
        None,
    ),
    "header-not-an-object": (lambda k: [b"[]\n", *k.new[1:]], None),
    "header-nested-without-end": (lambda k: [b"[" * 100_000 + b"\n", *k.new[1:]], None),
    "entry-nested-without-end": (lambda k: [*k.new[:3], b"[" * 100_000 + b"\n", *k.new[4:]], 2),
    "header-with-another-key": (
        lambda k: [
            k.new[0].replace(IDENTITY.public.key_id.encode(), STRANGER.public.key_id.encode()),
            *k.new[1:],
        ],
        None,
    ),
    "empty-file": (lambda _: [], None),
}


@pytest.mark.parametrize(("make", "first_bad"), DEFECTS.values(), ids=DEFECTS)
def test_a_defect_is_found_and_placed(
    logs: Logs, make: Callable[[Logs], Lines], first_bad: int | None
) -> None:
    lines = make(logs)
    assert lines != logs.new
    report = logs.check(lines)
    assert not report.valid
    assert report.reason
    assert report.first_bad == first_bad
    if first_bad is not None:
        assert report.entries == first_bad


def test_a_cut_tail_with_its_older_head_is_found_by_a_known_head(logs: Logs) -> None:
    assert logs.check(logs.old).valid
    report = logs.check(logs.old, known_heads=[logs.head])
    assert (report.valid, report.first_bad) == (False, ENTRIES - 2)


def test_a_history_written_anew_is_found_by_a_known_head(logs: Logs, tmp_path: Path) -> None:
    with opened(tmp_path) as engine:
        ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
        for round_ in range(ENTRIES + 1):
            ledger.append("round.opened", {"round": round_})
        ledger.export(tmp_path / "anew.jsonl")
    assert logs.check(lines_of(tmp_path / "anew.jsonl")).valid
    report = logs.check(lines_of(tmp_path / "anew.jsonl"), known_heads=[logs.head, logs.old_head])
    assert not report.valid
    assert "another history" in report.reason


def test_heads_of_other_logs_are_passed_over(logs: Logs) -> None:
    assert logs.check(logs.new, known_heads=[TreeHead("site/south", 99, "a" * 64)]).valid


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_no_edited_byte_verifies(logs: Logs, data: st.DataObject) -> None:
    text = bytearray(b"".join(logs.new))
    place = data.draw(st.integers(0, len(text) - 1), label="place")
    text[place] ^= data.draw(st.integers(1, 255), label="change")
    assert not logs.check([bytes(text)]).valid


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(data=st.data())
def test_no_rearrangement_verifies(logs: Logs, data: st.DataObject) -> None:
    """Deletion, swap, replay, truncation and splicing, in any mixture, against a known head."""
    stock = [*logs.new, *logs.old[-1:], *logs.other]
    chosen = st.lists(st.sampled_from(stock), max_size=len(logs.new) + 2)
    kept = st.lists(st.integers(0, len(logs.new) - 1), unique=True).map(
        lambda places: [logs.new[place] for place in sorted(places)]
    )
    cut = st.integers(0, len(logs.new)).map(lambda end: logs.new[:end] + logs.old[-1:])
    lines = data.draw(st.one_of(chosen, kept, cut, st.permutations(logs.new)))
    expected = lines == logs.new
    assert logs.check(list(lines), known_heads=[logs.head]).valid is expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(end=st.integers(0))
def test_no_truncation_verifies(logs: Logs, end: int) -> None:
    text = b"".join(logs.new)
    report = logs.check([text[: end % len(text)]])
    assert not report.valid


# --- defects that are signed: the site's own key wrote them, and ε shows them


def fields_of(round_: int, **changed: object) -> dict[str, object]:
    return run(round_).fields() | changed


def trained_of(round_: int, reserved: int, **changed: object) -> dict[str, object]:
    runs = [run(number) for number in range(1, reserved + 1)]
    return trained(run(round_), runs).fields() | changed


STOP: dict[str, object] = {"job": run(1).job, "round": 1, "probes": {}}

SIGNED_DEFECTS: dict[str, tuple[list[tuple[str, dict[str, object]]], int, str]] = {
    "trained-without-reservation": ([(TRAINED, trained_of(1, 1))], 0, "not reserved"),
    "trained-before-its-reservation": (
        [(TRAINED, trained_of(1, 1)), (RESERVED, fields_of(1))],
        0,
        "not reserved",
    ),
    "trained-twice-on-one-reservation": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1)), (TRAINED, trained_of(1, 1))],
        2,
        "twice",
    ),
    "less-noise-than-reserved": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1, noise_multiplier=1.0))],
        1,
        "another mechanism",
    ),
    "reserved-again-with-more-noise": (
        [(RESERVED, fields_of(1)), (RESERVED, fields_of(1, noise_multiplier=9.0))],
        1,
        "another mechanism",
    ),
    "epsilon-claimed-too-small": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1, epsilon_loc=0.1))],
        1,
        "ε_loc",
    ),
    "epsilon-of-one-round-claimed-for-two": (
        [
            (RESERVED, fields_of(1)),
            (TRAINED, trained_of(1, 1)),
            (RESERVED, fields_of(2)),
            (TRAINED, trained_of(2, 1)),
        ],
        3,
        "ε_loc",
    ),
    "epsilon-sec-claimed-too-small": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1, epsilon_sec=0.0))],
        1,
        "ε_sec",
    ),
    "crashed-reservation-left-out-of-the-claim": (
        [(RESERVED, fields_of(1)), (RESERVED, fields_of(2)), (TRAINED, trained_of(2, 1))],
        2,
        "ε_loc",
    ),
    "reservations-missing-from-the-log": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 5))],
        1,
        "missing",
    ),
    "finite-claim-without-noise": (
        [
            (RESERVED, fields_of(1, noise_multiplier=0)),
            (TRAINED, trained_of(1, 1, noise_multiplier=0)),
        ],
        1,
        "ε_loc",
    ),
    "sampling-rate-over-one": ([(RESERVED, fields_of(1, sampling_rate=1.5))], 0, "sampling_rate"),
    "negative-noise": ([(RESERVED, fields_of(1, noise_multiplier=-1))], 0, "noise_multiplier"),
    "no-step": ([(RESERVED, fields_of(1, steps=0))], 0, "steps"),
    "unit-of-utterances": ([(RESERVED, fields_of(1, unit="utterance"))], 0, "unit"),
    "unknown-mechanism": ([(RESERVED, fields_of(1, mechanism="shuffled"))], 0, "mechanism"),
    "unknown-adjacency": ([(RESERVED, fields_of(1, adjacency="other"))], 0, "adjacency"),
    "delta-as-text": ([(RESERVED, fields_of(1, delta="tiny"))], 0, "delta"),
    "delta-as-truth-value": ([(RESERVED, fields_of(1, delta=True))], 0, "delta"),
    "field-missing": ([(RESERVED, {"job": "0b0b", "round": 1})], 0, "missing"),
    "spend-under-another-sites-name": (
        [(RESERVED, fields_of(1)), (RESERVED, fields_of(2, site="nobody"))],
        1,
        "another site",
    ),
    "one-round-for-two-purposes": (
        [(RESERVED, fields_of(1)), (RESERVED, fields_of(1, purpose="accounts"))],
        1,
        "another purpose",
    ),
    "trained-after-a-probe-stopped-it": (
        [(RESERVED, fields_of(1)), (STOPPED, STOP), (TRAINED, trained_of(1, 1))],
        2,
        "stopped",
    ),
    "stopped-after-it-was-trained": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1)), (STOPPED, STOP)],
        2,
        "was trained",
    ),
    "stopped-without-reservation": ([(STOPPED, STOP)], 0, "not reserved"),
    "stopped-nothing": ([(RESERVED, fields_of(1)), (STOPPED, {"probes": {}})], 1, "does not name"),
    "probes-left-out-again": (
        [
            (RESERVED, fields_of(1)),
            (TRAINED, trained_of(1, 1)),
            (RESERVED, fields_of(2)),
            (TRAINED, trained_of(2, 2, plan_format=PLAN_FORMAT_V1, probes={})),
        ],
        3,
        "without probes",
    ),
    "negative-epsilon": (
        [(RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1, epsilon_loc=-1))],
        1,
        "epsilon_loc",
    ),
}


@pytest.mark.parametrize(
    ("events", "first_bad", "reason"), SIGNED_DEFECTS.values(), ids=SIGNED_DEFECTS
)
def test_a_signed_defect_is_found_and_placed(
    tmp_path: Path, events: list[tuple[str, dict[str, object]]], first_bad: int, reason: str
) -> None:
    report = verify_export(export_of(tmp_path, IDENTITY, events), [IDENTITY.public])
    assert (report.valid, report.first_bad) == (False, first_bad)
    assert reason in report.reason


HONEST: dict[str, list[tuple[str, dict[str, object]]]] = {
    "nothing-happened": [],
    "crash-after-reserving-counts-as-spent": [
        (RESERVED, fields_of(1)),
        (RESERVED, fields_of(2)),
        (TRAINED, trained_of(2, 2)),
    ],
    "reservation-recorded-again-after-a-crash": [
        (RESERVED, fields_of(1)),
        (RESERVED, fields_of(1)),
        (TRAINED, trained_of(1, 1)),
    ],
    "another-job-reserved-in-between": [
        (RESERVED, fields_of(1)),
        (RESERVED, run(1, job="0c" * 8).fields()),
        (TRAINED, trained_of(1, 1)),
        (TRAINED, trained(run(1, job="0c" * 8), [run(1), run(1)]).fields()),
    ],
    "two-purposes-are-apart": [
        (RESERVED, fields_of(1)),
        (RESERVED, run(1, job="0c" * 8, purpose="accounts").fields()),
        (TRAINED, trained(run(1, job="0c" * 8, purpose="accounts"), [run(1)]).fields()),
        (TRAINED, trained_of(1, 1)),
    ],
    "site-not-named-is-the-log": [
        (kind, {name: value for name, value in fields.items() if name != "site"})
        for kind, fields in ((RESERVED, fields_of(1)), (TRAINED, trained_of(1, 1)))
    ],
    "without-noise-and-saying-so": [
        (RESERVED, fields_of(1, noise_multiplier=0)),
        (
            TRAINED,
            trained_of(1, 1, noise_multiplier=0, epsilon_loc="Infinity", epsilon_sec="Infinity"),
        ),
    ],
}


@pytest.mark.parametrize("events", HONEST.values(), ids=HONEST)
def test_an_honest_log_raises_no_alarm(
    tmp_path: Path, events: list[tuple[str, dict[str, object]]]
) -> None:
    report = verify_export(export_of(tmp_path, IDENTITY, events), [IDENTITY.public])
    assert report.reason == ""
    assert report.valid


def test_several_purposes_are_composed_for_who_is_in_all_of_them(tmp_path: Path) -> None:
    report = verify_export(export_of(tmp_path, IDENTITY, HONEST["two-purposes-are-apart"]))
    one, other, together = report.epsilons
    assert (one.purpose, other.purpose, together.purpose) == (PURPOSE, "accounts", ALL_PURPOSES)
    assert together.reserved == one.reserved + other.reserved
    assert together.epsilon_loc == epsilon([run(1).event()] * 2, 1e-6)
    assert together.epsilon_loc > max(one.epsilon_loc, other.epsilon_loc)
    assert together.claimed_loc is None


def test_a_reservation_that_never_trained_is_in_the_derived_epsilon(tmp_path: Path) -> None:
    events = HONEST["crash-after-reserving-counts-as-spent"]
    (derived,) = verify_export(export_of(tmp_path, IDENTITY, events)).epsilons
    assert (derived.reserved, derived.trained) == (2, 1)
    assert derived.epsilon_loc == epsilon([run(1).event(), run(2).event()], 1e-6)


@pytest.mark.parametrize("odd_first", [True, False])
def test_a_round_with_a_large_delta_or_many_honest_sites_shrinks_no_epsilon(
    tmp_path: Path, odd_first: bool
) -> None:
    odd = dataclasses.replace(run(1, job="0c" * 8), delta=0.5)
    events, both = [], [run(1).event()] * 2
    for done, (this, sites) in enumerate([(odd, 50), (run(1), 3)][:: 1 if odd_first else -1], 1):
        claim = dataclasses.replace(
            trained(this, []),
            epsilon_loc=epsilon(both[:done], this.delta),
            epsilon_sec=epsilon_sec(both[:done], this.delta, sites),
            honest_sites=sites,
        )
        events += [(RESERVED, this.fields()), (TRAINED, claim.fields())]
    report = verify_export(export_of(tmp_path, IDENTITY, events))
    assert report.reason == ""
    (derived,) = report.epsilons
    assert (derived.delta, derived.honest_sites) == (1e-6, 3)
    assert derived.epsilon_loc == pytest.approx(epsilon(both, 1e-6))
    assert derived.epsilon_sec == pytest.approx(epsilon_sec(both, 1e-6, 3))


def sealed_export(folder: Path, payloads: list[bytes]) -> Path:
    """An export of `payloads` as entries, which their owner signed whatever they say."""
    key, tree, lines = IDENTITY.public, MerkleTree(), []
    for payload in payloads:
        tree.append(payload)
        lines.append(seal_statement(payload, ENTRY_TYPE, IDENTITY))
    head = TreeHead(LOG_ID, tree.size, tree.root().hex())
    lines.append(SignedTreeHead.sign(head, "2026-03-02T08:00:00Z", IDENTITY).sealed)
    path = folder / "sealed.jsonl"
    path.write_bytes(b"\n".join([export_header(LOG_ID, key), *lines]) + b"\n")
    return path


@pytest.mark.parametrize("value", ["1" + "0" * 400, "[" * 20_000 + "]" * 20_000])
def test_what_no_parser_holds_is_a_fault_and_no_crash(tmp_path: Path, value: str) -> None:
    fields = json.dumps(fields_of(1) | {"clipping_norm": 0}).replace(
        '"clipping_norm": 0', f'"clipping_norm": {value}'
    )
    payload = (
        f'{{"format": "{ENTRY_FORMAT}", "log_id": "{LOG_ID}", "index": 0, "at": "", '
        f'"kind": "{RESERVED}", "fields": {fields}, "previous_sha256": "{NO_PREVIOUS}"}}'
    )
    report = verify_export(sealed_export(tmp_path, [payload.encode()]), [IDENTITY.public])
    assert (report.valid, report.first_bad) == (False, 0)


def test_an_infinite_claim_survives_the_file(tmp_path: Path) -> None:
    without = HONEST["without-noise-and-saying-so"]
    (derived,) = verify_export(export_of(tmp_path, IDENTITY, without)).epsilons
    assert derived.epsilon_loc == derived.claimed_loc == math.inf


def test_an_export_holds_the_public_key_and_no_other(logs: Logs) -> None:
    text = b"".join(logs.new)
    assert IDENTITY.public.key_id.encode() in text
    assert b"PRIVATE" not in text
    assert all(b"PRIVATE" not in base64.b64decode(line[12:200]) for line in logs.new[1:])


# --- the real budget writes the reservations


def plan_of(job: str, rounds: int) -> RoundPlan:
    return RoundPlan(
        job=job,
        purpose=PURPOSE,
        base_sha256="b2" * 32,
        adapter=AdapterSpec("lora", 1, 1.0, ("q_proj",), (), (TensorSpec("a", (2, 2)),)),
        sampling_rate=0.25,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        rounds=rounds,
        delta=1e-6,
        expected_subjects=100,
        max_utterances_per_subject=4,
        honest_sites=2,
        sites=(SITE, "south"),
        quorum=1,
        deadline_s=60.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at="2026-03-02T08:00:00Z",
    )


def test_a_budget_that_records_in_the_ledger_verifies_to_its_own_spend(tmp_path: Path) -> None:
    plan = plan_of("0d" * 8, rounds=4)
    with opened(tmp_path) as engine:
        ledger = Ledger(engine, IDENTITY, LOG_ID, ticking())
        budget = Budget(engine, SITE, BudgetCaps(default=8.0, delta=1e-6), ledger.append)
        for round_ in range(1, 4):
            reservation = budget.reserve(plan, round_)
            run_ = MechanismRun.from_plan(plan, round_, SITE)
            if round_ != 2:  # the second round dies after its reservation
                events = [run_.event()] * round_
                claim = trained(run_, [], epsilon_loc=budget.spent(PURPOSE).epsilon_loc)
                claim = dataclasses.replace(claim, epsilon_sec=epsilon_sec(events, 1e-6, 3))
                ledger.append(TRAINED, claim.fields())
                budget.commit(reservation)
        ledger.export(tmp_path / "export.jsonl")
        spent = budget.spent(PURPOSE)
    report = verify_export(tmp_path / "export.jsonl", [IDENTITY.public])
    assert report.reason == ""
    (derived,) = report.epsilons
    assert derived.epsilon_loc == spent.epsilon_loc
    assert (derived.reserved, derived.trained) == (3, 2)
    assert (spent.reserved, spent.committed) == (1, 2)


@pytest.mark.slow
def test_a_thousand_clean_rounds_with_crashes_raise_no_alarm(tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, object]]] = []
    loc, sec = Composition(), Composition()
    for round_ in range(1, 1001):
        this = dataclasses.replace(run(round_), noise_multiplier=2.0 + round_ // 250)
        loc.add(this.event())
        sec.add(this.event().summed(3))
        events += [(RESERVED, this.fields())] * (2 if round_ % 97 == 0 else 1)
        if round_ % 50 == 0:
            continue  # killed after its reservation
        if round_ % 70 == 0:
            events.append((STOPPED, {"job": this.job, "round": round_, "probes": {}}))
            continue
        claims = {"epsilon_loc": loc.epsilon(this.delta), "epsilon_sec": sec.epsilon(this.delta)}
        events.append((TRAINED, trained(this, [], **claims).fields()))
    chain, payloads = Chain(LOG_ID, IDENTITY.public), []
    for kind, fields in events:
        entry = chain.draft(kind, fields, "2026-03-02T08:00:00Z", IDENTITY)
        chain.extend(entry)
        payloads.append(entry.payload)
    report = verify_export(sealed_export(tmp_path, payloads), [IDENTITY.public])
    assert report.reason == ""
    (derived,) = report.epsilons
    assert (derived.reserved, derived.trained) == (1000, 968)
    assert derived.epsilon_loc == pytest.approx(loc.epsilon(1e-6))
