"""The coordinator's whole memory and database after a round: the sum is there, no update is.

Its process is searched byte by byte (/proc/PID/mem, Linux), in every form in which an update could
lie about, and for what is known to be there, so that the search itself is seen to work.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from privacy.secure_aggregation.fixed_point import FixedPoint
from tests.e2e.secure_coordinator import from_line, to_line
from tests.e2e.secure_federation import NAMES, SecureFederation

ROOT = Path(__file__).parents[2]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[SecureFederation]:
    made = SecureFederation(tmp_path)
    made.identity.save(tmp_path / "identity.pem")
    yield made
    made.close()


def memory_of(pid: int) -> bytes:
    """All that the process can read of its own, but for mapped files."""
    found = []
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            spans, rights, _, _, inode, *name = line.split()
            if "r" not in rights or inode != "0" or name[:1] in (["[vvar]"], ["[vsyscall]"]):
                continue
            start, end = (int(edge, 16) for edge in spans.split("-"))
            memory.seek(start)
            try:
                found.append(memory.read(end - start))
            except OSError:
                continue
    return b"\0".join(found)


def forms(integers_D: np.ndarray, step: float) -> dict[str, bytes]:
    """An update's numbers in each type in which a coordinator might hold them."""
    values_D = integers_D * step
    return {
        "int64": integers_D.astype(np.int64).tobytes(),
        "int32": integers_D.astype(np.int32).tobytes(),
        "float64": values_D.astype(np.float64).tobytes(),
        "float32": values_D.astype(np.float32).tobytes(),
        "hex": integers_D.astype(np.int32).tobytes().hex().encode(),
    }


@pytest.mark.slow
def test_the_coordinator_holds_the_sum_and_no_sites_update(
    federation: SecureFederation, tmp_path: Path
) -> None:
    sgd = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant"}
    job = federation.submit(quorum=4, honest_sites=3, optimiser=sgd)
    plan = federation.tools.jobs.load(job).plan
    federation.engine.dispose()
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.secure_coordinator", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    masked, memory = {}, []
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        while "done" not in (asked := json.loads(line := child.stdout.readline())):
            site, parcel = from_line(line)
            if parcel.kind == "release" and not memory:
                memory.append(memory_of(child.pid))  # the sum has just been had
            reply = federation.sites[site](parcel)
            if reply.kind == "update":
                masked[site] = reply.payload
            child.stdin.write(to_line(site, reply) + "\n")
            child.stdin.flush()
        memory.append(memory_of(child.pid))
    finally:
        child.communicate("\n")
    database = b"".join(path.read_bytes() for path in tmp_path.glob("auricle.db*"))

    assert set(masked) == set(NAMES)
    assert len(memory) == 2
    assert bytes.fromhex(asked["done"]) in memory[1]  # the search finds what is there
    assert bytes.fromhex(asked["done"]) in database
    step = FixedPoint.of(plan).step
    for name in NAMES:
        for form, data in forms(federation.sites[name].trainer.trained[1], step).items():
            assert not any(data in seen for seen in memory), f"{name}'s update, as {form}"
            assert data not in database, f"{name}'s update, as {form}"
