"""One `auricle` command in a network namespace with nothing outside, and what it tried to reach.

Usage: python -m tests.e2e.watched_command OUTCOME WORD..., inside a new network namespace. OUTCOME
gets the exit status, what was printed, and the kernel's count of packets for other hosts: after
the command, and again after one attempt made on purpose, which shows that the count can tell.
"""

from __future__ import annotations

import contextlib
import io
import json
import socket
import sys
from pathlib import Path

from deploy.cli import main as cli
from tests.e2e.federation_run import CONTROL_HOST
from tests.e2e.namespace import raise_loopback, unroutable_attempts


def main(outcome: Path, words: list[str]) -> None:
    """Run the command of `words` and write what happened to `outcome`."""
    raise_loopback()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        status = cli.run(words)
    attempts = unroutable_attempts()
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.connect((CONTROL_HOST, 443))
    fields = {
        "status": status,
        "printed": printed.getvalue(),
        "unroutable_attempts": attempts,
        "unroutable_after_control": unroutable_attempts(),
    }
    outcome.write_text(json.dumps(fields))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
