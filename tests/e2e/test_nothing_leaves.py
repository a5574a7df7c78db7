"""What leaves a site is the sealed update and nothing else; no process looks for another host."""

from __future__ import annotations

import base64
import gzip
import zlib
from pathlib import Path

import h11
import numpy as np
import pytest

from privacy.receipt import Receipt, read_parcel, read_receipts
from tests.e2e.canaries import FOLDER, SUBJECT, WORD, Detector, canary_samples, make_detector
from tests.e2e.conftest import Federation, marked_processes
from tests.e2e.federation_run import CONTROL_HOST, ROUNDS, SITES, WATCHED

NOISE = np.random.default_rng(1).bytes(4096)
AUDIO = canary_samples()[5000:9000]
STATES = np.random.default_rng(2).bytes(20_000)
CONTROL_BYTES = 1500  # of a request beside what it carries: names, hashes, lengths


@pytest.fixture(scope="module")
def detector(federation: Federation) -> Detector:
    shards = federation.site(WATCHED).glob("features/*/*.safetensors")
    return make_detector({"encoder states": b"".join(path.read_bytes() for path in shards)})


def files(*folders: Path) -> dict[Path, bytes]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.read_bytes() for path in paths}


def test_no_process_tries_to_reach_another_host(federation: Federation) -> None:
    attempts = [line for line in federation.watched if not line.startswith("watching ")]
    # The run's own last act is an attempt, which shows that attempts are seen.
    assert [line.split()[:3] for line in attempts] == [["attempt", "socket.connect", CONTROL_HOST]]


def test_every_process_was_watched(federation: Federation) -> None:
    watched = [line for line in federation.watched if line.startswith("watching ")]
    for part in (f"--home {federation.coordinator}", *(f"sites/{name}" for name in SITES)):
        assert any("deploy.cli.main" in line and part in line for line in watched)
    supernodes = [line for line in watched if "client_node.supernode" in line]
    assert len(supernodes) == len(SITES)


def test_the_kernel_saw_no_packet_for_another_host(federation: Federation) -> None:
    if not federation.outcome["isolated"]:
        pytest.skip("this account may not make network namespaces")
    assert federation.outcome["unroutable_attempts"] == 0
    assert federation.outcome["unroutable_after_control"] > 0


def test_no_process_outlives_the_federation(federation: Federation) -> None:
    assert marked_processes(federation.watch) == []
    assert set(federation.outcome["exit_statuses"].values()) == {0}


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("subject", SUBJECT.encode()),
        ("transcript", WORD.encode()),
        ("path", FOLDER.encode()),
        ("audio as int16", AUDIO.astype("<i2").tobytes()),
        ("audio as float32", (AUDIO / np.float32(32768)).astype("<f4").tobytes()),
        ("audio as float32", AUDIO.astype("<f4").tobytes()),
        ("states", STATES[1000:9000]),
    ],
)
def test_the_detector_finds_each_canary_in_each_form(name: str, raw: bytes) -> None:
    detector = make_detector({"states": STATES})
    forms = [raw, raw.hex().encode(), zlib.compress(raw), gzip.compress(raw)]
    forms += [base64.b64encode(b"x" * shift + raw) for shift in range(3)]
    forms += [base64.urlsafe_b64encode(raw), zlib.compress(base64.b64encode(raw))]
    for form in forms:
        assert detector.found(NOISE + form + NOISE) == {name}


def test_the_detector_finds_nothing_in_noise() -> None:
    assert make_detector({"states": STATES}).found(NOISE) == frozenset()


def test_the_site_itself_holds_every_canary(federation: Federation, detector: Detector) -> None:
    """Otherwise finding none of them outside would show nothing."""
    home = federation.site(WATCHED)
    database = b"".join(path.read_bytes() for path in home.glob("auricle.db*"))
    assert detector.found(database) >= {"subject", "transcript", "path"}
    recording = federation.root / "private" / WATCHED / FOLDER / "private.wav"
    assert detector.found(recording.read_bytes()) == {"audio as int16"}
    shards = b"".join(path.read_bytes() for path in home.glob("features/*/*.safetensors"))
    assert "encoder states" in detector.found(shards)


def test_no_canary_on_the_wire(federation: Federation, detector: Detector) -> None:
    for direction in ("sent", "received"):
        wire = federation.wire(direction)
        assert sum(map(len, wire)) > 100_000
        assert [detector.found(data) for data in wire if detector.found(data)] == []


def test_no_canary_in_any_log_or_at_the_coordinator(
    federation: Federation, detector: Detector
) -> None:
    site = federation.site(WATCHED)
    kept = files(federation.coordinator, federation.root / "logs", site / "logs", site / "receipts")
    names = {path.name for path in kept}
    assert {"auricle.db", "flower.db", "site.log", "supernode.log"} <= names
    leaks = {path: detector.found(data) for path, data in kept.items()}
    assert {path: found for path, found in leaks.items() if found} == {}


def test_no_canary_in_the_ledger_that_a_site_shows(
    federation: Federation, detector: Detector, tmp_path: Path
) -> None:
    from deploy.ledgers import open_ledger

    for name, home in federation.homes.items():
        export = tmp_path / f"{name}.jsonl"
        open_ledger(home).export(export)
        assert detector.found(export.read_bytes()) == frozenset()


def bodies(wire: bytes) -> list[bytes]:
    """The body of every request on one connection; the last may have been cut by a kill."""
    connection, found = h11.Connection(h11.SERVER), []
    connection.receive_data(wire)
    body = b""
    while True:
        event = connection.next_event()
        if event in (h11.NEED_DATA, h11.PAUSED) or isinstance(event, h11.ConnectionClosed):
            return [*found, body] if body else found
        if isinstance(event, h11.Data):
            body += bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            found.append(body)
            body = b""
            reply = h11.Response(status_code=200, headers=[("content-length", "0")])
            connection.send(reply)
            connection.send(h11.EndOfMessage())
            if connection.our_state is not h11.DONE:
                return found
            connection.start_next_cycle()


def payloads(federation: Federation) -> dict[Receipt, bytes]:
    folder = federation.site(WATCHED) / "receipts"
    kept = {one: read_parcel(folder, one).payload for one in read_receipts(folder)}
    return {one: payload for one, payload in kept.items() if payload}


def test_receipts_account_for_every_byte_that_left(federation: Federation) -> None:
    updates = payloads(federation)
    assert [one.round for one in updates] == [*range(1, ROUNDS + 1)] * 2
    carried = [body for wire in federation.wire("sent") for body in bodies(wire)]
    for payload in updates.values():
        assert any(payload in body for body in carried)
    for body in carried:
        rest = len(body) - sum(len(payload) for payload in updates.values() if payload in body)
        assert rest <= CONTROL_BYTES


def test_what_left_is_mostly_the_sealed_updates(federation: Federation) -> None:
    """Headers are left out: how many requests ask for news depends on how long the sites waited."""
    carried = sum(len(body) for wire in federation.wire("sent") for body in bodies(wire))
    assert sum(map(len, payloads(federation).values())) > 0.9 * carried
