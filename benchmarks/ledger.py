"""The ledger's speed: verification offline, durable appends, and the size of a proof.

python -m benchmarks.ledger [--entries N] [--appends N] [--json]

Three claims of docs/privacy.md. Verification: a log of N entries, one signed job of rounds after
the other as a site writes them, is exported and verified, every signature, hash and link, on all
cores and on one. Its peer is securesystemslib opening the same envelopes in the same minute, which
checks the signatures and nothing else. Append: entries of several threads, each on disk (WAL with
full fsync) when `append` returns; its peer is a bare file with one fsync an entry, on the same disk
in the same minute. Proof: the longest audit path of the log, as it stands in a proof file.

ε is derived from the log too; rounds without noise make that instant here, since what composing
costs is the accountant's and `benchmarks.accountant` measures it.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey

from privacy import ledger_verify
from privacy.ledger import Ledger
from privacy.ledger_entry import Chain, SignedTreeHead, export_header, timestamp
from privacy.ledger_signatures import with_signatures
from privacy.ledger_verify import verify_export
from privacy.merkle import MerkleTree
from privacy.signing import Identity
from privacy.store import open_engine

LOG_ID = "site/north"
TARGET_VERIFY_S = 15.0
TARGET_ENTRIES = 100_000
TARGET_APPENDS_PER_S = 500.0
TARGET_PROOF_BYTES = 1000
PEER_ENTRIES = 2000
WRITERS = 16
AT = timestamp(datetime(2026, 3, 2, tzinfo=UTC))


def events(entries: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What a site writes, round after round: an update sealed, a refusal, a release."""
    for number in range(entries):
        job = f"{number // 1500:016x}"
        match number % 3:
            case 0:
                yield "parcel.refused", {"job": job, "round": number, "code": "round-stale"}
            case 1:
                hashes = {"statement_sha256": f"{number:064x}", "payload_sha256": f"{~number:065x}"}
                yield "update.sealed", {"job": job, "round": number, "size_bytes": 16384, **hashes}
            case _:
                hashes = {"adapter_sha256": f"{number:064x}", "base_sha256": "ba" * 32}
                yield "release.activated", {"release": f"{job}-1", "job": job, **hashes}


def write_export(path: Path, identity: Identity, entries: int) -> None:
    """An export as `Ledger.export` writes it, without a database in between."""
    chain = Chain(LOG_ID, identity.public)
    with path.open("wb") as file:
        file.write(export_header(LOG_ID, identity.public) + b"\n")
        for kind, fields in events(entries):
            entry = chain.draft(kind, fields, AT, identity)
            chain.extend(entry)
            file.write(entry.sealed + b"\n")
        file.write(SignedTreeHead.sign(chain.head, AT, identity).sealed + b"\n")


def seconds(work: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of all threads of one call: what a busy machine hardly changes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def verify_s(path: Path, identity: Identity, threads: int | None) -> tuple[float, float]:
    """Seconds, and CPU seconds, to verify an export with that many threads for the signatures."""

    def verify() -> None:
        report = verify_export(path, [identity.public])
        assert report.valid, report.reason

    used: list[float] = []
    with _threads(threads):
        took_s = seconds(lambda: used.append(cpu_seconds(verify)))
    return took_s, used[0]


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    whole = ledger_verify.with_signatures
    ledger_verify.with_signatures = lambda lines, key: with_signatures(lines, key, count)
    try:
        yield
    finally:
        ledger_verify.with_signatures = whole


def peer_verify_s(path: Path, identity: Identity, entries: int) -> float:
    """Seconds that securesystemslib takes to open as many envelopes, scaled from a sample."""
    with path.open("rb") as file:
        lines = [line for line, _ in zip(file, range(PEER_ENTRIES + 1), strict=False)][1:]
    keys = [SSlibKey.from_crypto(identity.public._key, keyid=identity.public.key_id)]

    def verify() -> None:
        for line in lines:
            Envelope.from_dict(json.loads(line)).verify(keys, threshold=1)

    return seconds(verify) * entries / len(lines)


def appends_per_s(folder: Path, appends: int, writers: int) -> float:
    """Durable entries a second of `writers` threads on one ledger."""
    engine = open_engine(f"sqlite:///{folder / f'{writers}.db'}")
    ledger = Ledger(engine, Identity.generate(), LOG_ID, lambda: datetime.now(UTC))

    def write() -> None:
        for kind, fields in events(appends // writers):
            ledger.append(kind, fields)

    threads = [threading.Thread(target=write) for _ in range(writers)]

    def run() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    took_s = seconds(run)
    size = ledger.size
    engine.dispose()
    assert size == appends // writers * writers
    return size / took_s


def fsyncs_per_s(folder: Path, count: int) -> float:
    """What the disk gives: 4 kB written and synced, one after the other."""

    def run() -> None:
        with (folder / "plain").open("wb") as file:
            for _ in range(count):
                file.write(bytes(4096))
                file.flush()
                os.fsync(file.fileno())

    return count / seconds(run)


def proof_bytes(entries: int) -> int:
    """Longest audit path of a log of that size, as base64 in a proof file."""
    tree = MerkleTree()
    for number in range(entries):
        tree.append(number.to_bytes(8, "big"))
    step = max(1, entries // 997)
    longest = max(len(tree.inclusion_proof(index)) for index in range(0, entries, step))
    return len(base64.b64encode(bytes(32 * longest)))


def measure(entries: int, appends: int) -> dict[str, Any]:
    """Every row, and the headline object."""
    identity = Identity.generate()
    # Beside the checkout and not in /tmp, which may be memory and have nothing to sync.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-") as name:
        folder = Path(name)
        path = folder / "export.jsonl"
        write_export(path, identity, entries)
        peer = peer_verify_s(path, identity, entries)
        one, one_cpu = verify_s(path, identity, 1)
        all_cores, _ = verify_s(path, identity, None)
        fsyncs = fsyncs_per_s(folder, max(20, appends // 10))
        alone = appends_per_s(folder, max(20, appends // 10), 1)
        together = appends_per_s(folder, appends, WRITERS)
        size_bytes = path.stat().st_size
    proof = proof_bytes(entries)
    limit_s = TARGET_VERIFY_S * entries / TARGET_ENTRIES
    rows = [
        {"what": "verify, all cores", "value": all_cores, "unit": "s", "ratio": all_cores / peer},
        {"what": "verify, one core", "value": one, "unit": "s", "ratio": one / peer},
        {"what": "verify, CPU time", "value": one_cpu, "unit": "s", "ratio": None},
        {"what": "securesystemslib, signatures only", "value": peer, "unit": "s", "ratio": 1.0},
        {
            "what": f"append, {WRITERS} threads",
            "value": together,
            "unit": "1/s",
            "ratio": together / fsyncs,
        },
        {"what": "append, one thread", "value": alone, "unit": "1/s", "ratio": alone / fsyncs},
        {"what": "bare fsync of 4 kB", "value": fsyncs, "unit": "1/s", "ratio": 1.0},
        {"what": "entry in the export", "value": size_bytes / entries, "unit": "B", "ratio": None},
        {"what": "audit path in a proof", "value": proof, "unit": "B", "ratio": None},
    ]
    met = all_cores <= limit_s and together >= TARGET_APPENDS_PER_S and proof <= TARGET_PROOF_BYTES
    headline = {
        "metric": f"seconds to verify {entries} entries; appends/s with fsync; proof bytes",
        "value": [round(all_cores, 2), round(together), proof],
        "target": [limit_s, TARGET_APPENDS_PER_S, TARGET_PROOF_BYTES],
        "met": met,
    }
    return {"entries": entries, "cores": os.cpu_count(), "rows": rows, "headline": headline}


def main() -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--entries", type=int, default=TARGET_ENTRIES)
    parser.add_argument("--appends", type=int, default=2000)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    result = measure(arguments.entries, arguments.appends)
    if arguments.json:
        print(json.dumps(result))
        return
    table = Table("", "measured", "", "÷ peer", title=f"Ledger of {result['entries']} entries")
    for row in result["rows"]:
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        table.add_row(row["what"], f"{row['value']:,.1f}", row["unit"], ratio)
    console = Console()
    console.print(table)
    console.print_json(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
