"""A coordinator in a process of its own, whose sites are at the other end of two pipes.

    python -m tests.e2e.secure_coordinator FOLDER

Reads and writes one JSON line at a time: it sends {"site", "kind", "statement", "payload"} and is
answered the same way. When the job is done it says {"done": weights} and waits to be looked into.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from coordinator.job import JobLoop
from privacy.parcel import Parcel
from privacy.signing import Identity
from tests.coordinator.fakes import FakeClock, StepLink, make_tools


def to_line(site: str, parcel: Parcel) -> str:
    fields = {"site": site, "kind": parcel.kind}
    hexed = {"statement": parcel.statement.hex(), "payload": parcel.payload.hex()}
    return json.dumps(fields | hexed)


def from_line(line: str) -> tuple[str, Parcel]:
    fields: dict[str, Any] = json.loads(line)
    data = (bytes.fromhex(fields["statement"]), bytes.fromhex(fields["payload"]))
    return fields["site"], Parcel(fields["kind"], *data)


class PipedSite:
    def __init__(self, name: str) -> None:
        self._name = name

    def __call__(self, parcel: Parcel) -> Parcel:
        print(to_line(self._name, parcel), flush=True)  # noqa: T201 - the pipe
        return from_line(sys.stdin.readline())[1]


def main() -> None:
    folder = Path(sys.argv[1])
    identity, clock = Identity.load(folder / "identity.pem"), FakeClock()
    tools, _ = make_tools(folder, identity, clock)
    link = StepLink({name: PipedSite(name) for name in tools.registry.active()})
    (job,) = tools.jobs.names()
    JobLoop(job, tools, link).run(clock.wait)
    weights = tools.jobs.checkpoint(job).weights
    print(json.dumps({"done": weights.hex()}), flush=True)  # noqa: T201 - the pipe
    sys.stdin.readline()


if __name__ == "__main__":
    main()
