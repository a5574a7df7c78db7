"""Which release serves at a site and what happened to each: one file that changes in one step.

A crash leaves the file as it was or as it should be, so that what serves, what served before and
the history of both never disagree.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from client_node.errors import SiteError
from client_node.home import write_private

POINTER_NAME = "active.json"
_LOCK_NAME = ".lock"

Happening = Literal["staged", "refused", "activated", "rolled-back", "withdrawn"]
Standing = Literal["staged", "refused", "active", "superseded", "rolled-back", "withdrawn"]


class ReleaseError(SiteError):
    """A release is refused: unsigned, altered, for another base, or not there."""

    code = "release-refused"
    exit_code = 33


@dataclasses.dataclass(frozen=True)
class ReleaseEvent:
    """One thing that happened to a release here.

    Attributes:
        at: time with its zone, ISO 8601.
        code: of a refusal or a withdrawal, otherwise empty.
        reason: of a refusal, in words for this site's people; it never leaves.
    """

    at: str
    release: str
    what: Happening
    code: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Withdrawn:
    """What a withdrawal changed: whether the release was serving, and what serves now (or None)."""

    was_serving: bool
    serves: str | None


@dataclasses.dataclass(frozen=True)
class ServingState:
    """What serves now, what served before it (latest last; None is the bare base), and why."""

    active: str | None = None
    previous: tuple[str | None, ...] = ()
    history: tuple[ReleaseEvent, ...] = ()

    def latest(self, release: str) -> ReleaseEvent | None:
        """The last thing that happened to a release."""
        return next((one for one in reversed(self.history) if one.release == release), None)

    def is_withdrawn(self, release: str) -> bool:
        """Whether the coordinator has withdrawn it; nothing undoes that."""
        return any(one.release == release and one.what == "withdrawn" for one in self.history)

    def is_rolled_back(self, release: str) -> bool:
        """Whether this site's operator has turned it away, and not taken it back since."""
        turns = ("rolled-back", "activated")
        mine = [one.what for one in self.history if one.release == release and one.what in turns]
        return bool(mine) and mine[-1] == "rolled-back"

    def standing(self, release: str) -> Standing:
        """Where a release stands."""
        if self.active == release:
            return "active"
        if self.is_withdrawn(release):
            return "withdrawn"
        latest = self.latest(release)
        if latest is None:
            return "staged"
        return "superseded" if latest.what == "activated" else latest.what

    def after(self, *events: ReleaseEvent, **changes: Any) -> ServingState:
        """This state with more history and other changes; what is repeated at once is left out."""
        state = dataclasses.replace(self, **changes)
        for event in events:
            if not _repeats(state.latest(event.release), event):
                state = dataclasses.replace(state, history=(*state.history, event))
        return state


def read_state(folder: Path) -> ServingState:
    """The state of a site's `releases/`. Raises ReleaseError ("release-pointer")."""
    path = folder / POINTER_NAME
    try:
        fields = json.loads(path.read_bytes())
        history = [ReleaseEvent(**one) for one in fields.get("history", ())]
        # Homes from before histories were kept list the names alone.
        history += [
            ReleaseEvent("", str(name), "rolled-back") for name in fields.get("rolled_back", ())
        ]
        return ServingState(fields["active"], tuple(fields["previous"]), tuple(history))
    except FileNotFoundError:
        return ServingState()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReleaseError(
            f"{path} cannot be read: {type(error).__name__}",
            remedy=f"remove {path} to serve the base model, then activate a release again",
            code="release-pointer",
        ) from error


def write_state(folder: Path, state: ServingState) -> None:
    """Replace the state in one step; it is on disk on return."""
    write_private(folder / POINTER_NAME, json.dumps(dataclasses.asdict(state)).encode())
    sync_folder(folder)


@contextmanager
def changing(folder: Path) -> Iterator[ServingState]:
    """The state, with every other process and thread kept from changing it meanwhile."""
    descriptor = os.open(folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield read_state(folder)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as POSIX asks after a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _repeats(latest: ReleaseEvent | None, event: ReleaseEvent) -> bool:
    return latest is not None and (latest.what, latest.code) == (event.what, event.code)
