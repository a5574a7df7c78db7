"""Named failpoints: a step of the product's work at which a test's process dies or is refused.

The product has none: a failpoint wraps one of its functions, by name, inside a process that the
test started for that purpose. A process that dies here dies by SIGKILL, as by `kill -9`: nothing is
flushed, closed or rolled back by anybody but the operating system.
"""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from client_node import assembly, trainer
from client_node.outbox import Outbox
from coordinator.job_records import JobReader
from coordinator.jobs import Jobs
from coordinator.release_desk import ReleaseDesk
from privacy.budget import Budget

When = Literal["before", "after"]

STEPS: dict[str, tuple[object, str]] = {
    "site reserves": (Budget, "reserve"),
    "site adds noise": (trainer, "privatise"),
    "site keeps a receipt": (assembly, "write_receipt"),
    "site seals": (Outbox, "seal"),
    "site commits": (Budget, "commit"),
    "site settles": (Outbox, "settle"),
    "coordinator opens a round": (Jobs, "open_round"),
    "coordinator admits": (Jobs, "admit"),
    "coordinator reads updates": (JobReader, "payloads"),
    "coordinator checkpoints": (Jobs, "finish_round"),
    "coordinator begins a release": (Jobs, "begin_release"),
    "coordinator writes release files": (ReleaseDesk, "write_files"),
    "coordinator finishes": (Jobs, "finish"),
}


@dataclasses.dataclass(frozen=True)
class Fault:
    """Die `when` at `step` of `round`, once: `fired` is the file that says that it has happened."""

    step: str
    when: When
    round: int
    fired: Path


def kill_9(fault: Fault) -> None:
    """End this process as `kill -9` does, noting first, durably, that it was done."""
    descriptor = os.open(fault.fired, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.fsync(descriptor)
    os.kill(os.getpid(), signal.SIGKILL)


def arm(fault: Fault, current_round: Callable[[], int]) -> None:
    """Let this process die at the fault's step while `current_round()` is its round."""
    owner, name = STEPS[fault.step]
    real: Callable[..., Any] = getattr(owner, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        due = not fault.fired.exists() and current_round() == fault.round
        if due and fault.when == "before":
            kill_9(fault)
        result = real(*args, **kwargs)
        if due and isinstance(result, Iterator):
            return _dying(result, fault)
        if due:
            kill_9(fault)
        return result

    setattr(owner, name, failing)


def _dying(items: Iterator[Any], fault: Fault) -> Iterator[Any]:
    """The first of `items`, and then the end."""
    yield next(items)
    kill_9(fault)
