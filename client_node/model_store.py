"""Releases at a site: verify, stage, activate, refuse, withdraw, roll back (invariant I3).

A release is a `ReleaseManifest` signed by the coordinator and the adapter it names by SHA-256. It
lies in `releases/<id>/` exactly as it arrived, so that every load verifies the signature and the
hashes again: a file changed on disk after activation is refused like one changed on the wire.
What serves is named by one file, `active.json`, which changes in a single `os.replace`
(`release_state`); a crash leaves either the old release or the new one active, never half of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path

from client_node.home import write_private
from client_node.release_state import (
    POINTER_NAME,
    Happening,
    ReleaseError,
    ReleaseEvent,
    ServingState,
    Standing,
    Withdrawn,
    changing,
    read_state,
    sync_folder,
    write_state,
)
from privacy.errors import SignatureError
from privacy.parcel import ReleaseManifest
from privacy.signing import PublicIdentity, open_as, open_statement, payload_type_of

MANIFEST_NAME = "manifest.dsse.json"
ADAPTER_NAME = "adapter_model.safetensors"
MAX_ADAPTER_BYTES = 1 << 30
_RELEASE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

__all__ = [
    "ADAPTER_NAME",
    "MANIFEST_NAME",
    "POINTER_NAME",
    "HeldRelease",
    "ModelStore",
    "ReleaseError",
    "VerifiedRelease",
]


@dataclasses.dataclass(frozen=True)
class VerifiedRelease:
    """A release whose signature and hashes held when it was read from disk."""

    manifest: ReleaseManifest
    adapter: bytes


@dataclasses.dataclass(frozen=True)
class HeldRelease:
    """A release in a site's history; `manifest` is None where it is not held, or does not verify.

    `latest` is the last thing that happened to it, None where it was staged by an older version.
    """

    release: str
    standing: Standing
    latest: ReleaseEvent | None
    manifest: ReleaseManifest | None


def _utc_now() -> datetime:
    return datetime.now(UTC)


class ModelStore:
    """The releases of one site, bound to the coordinator keys and the base it trusts."""

    def __init__(
        self,
        folder: Path,
        trusted: Collection[PublicIdentity],
        base_sha256: str,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        """`folder` is the site's `releases/`; it is made, mode 0700, if missing."""
        self._folder = folder
        self._trusted = trusted
        self._base_sha256 = base_sha256
        self._clock = clock
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def active_id(self) -> str | None:
        """Name of the release that is to serve; None while the bare base does."""
        return read_state(self._folder).active

    def releases(self) -> list[HeldRelease]:
        """Every release that this site has held or was told of, oldest first."""
        state = read_state(self._folder)
        kept = sorted(path.name for path in self._folder.iterdir() if _names_release(path))
        told = [event.release for event in state.history]
        return [
            HeldRelease(name, state.standing(name), state.latest(name), self._readable(name))
            for name in dict.fromkeys([*(one for one in kept if one not in told), *told])
        ]

    def history(self) -> tuple[ReleaseEvent, ...]:
        """All that happened to releases here, oldest first."""
        return read_state(self._folder).history

    def stage(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        """Verify a release as received and keep it; it does not serve yet. Idempotent.

        Raises ReleaseError or SignatureError, in which case nothing is kept.
        """
        manifest = self._verify(statement, adapter)
        self._require_known_parent(manifest)
        home = self._folder / manifest.release
        if home.is_dir():
            if self.load(manifest.release).manifest != manifest:
                raise ReleaseError(
                    f"a different release named {manifest.release} is already held",
                    remedy="ask the coordinator's operator why one name was issued twice",
                    code="release-conflict",
                )
            return manifest
        staging = Path(tempfile.mkdtemp(prefix=".staging-", dir=self._folder))
        try:
            write_private(staging / MANIFEST_NAME, statement)
            write_private(staging / ADAPTER_NAME, adapter)
            staging.rename(home)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        sync_folder(self._folder)
        with changing(self._folder) as state:
            write_state(self._folder, state.after(self._event(manifest.release, "staged")))
        return manifest

    def load(self, release: str) -> VerifiedRelease:
        """Read a staged release, verifying its signature and hashes anew.

        Raises ReleaseError if it is missing or altered, SignatureError if its statement is.
        """
        home = self._folder / release
        try:
            if not _RELEASE_ID.fullmatch(release):
                raise FileNotFoundError
            statement = (home / MANIFEST_NAME).read_bytes()
            adapter = (home / ADAPTER_NAME).read_bytes()
        except OSError as error:
            raise ReleaseError(
                f"release {release!r} is not held here or cannot be read",
                remedy="ask the coordinator to send it again, or run `auricle site rollback`",
                code="release-missing",
            ) from error
        manifest = self._verify(statement, adapter)
        if manifest.release != release:
            raise ReleaseError(
                f"the folder of release {release} holds release {manifest.release}",
                remedy="run `auricle site rollback`, then ask the coordinator to send it again",
            )
        return VerifiedRelease(manifest, adapter)

    def activate(
        self,
        release: str,
        canary: Callable[[VerifiedRelease], None] | None = None,
        *,
        by_operator: bool = False,
    ) -> VerifiedRelease:
        """Make a staged release the one that serves, after `canary` (which raises to refuse it).

        A release issued at an earlier coordinator ledger size than the active one is refused: a
        replayed old release must not undo a newer one. So is one that was rolled back: a
        coordinator that sends it again must not undo the operator. Both are the operator's to
        choose (`by_operator`); one that was withdrawn is nobody's. What the canary refuses stays
        staged, with the reason.
        """
        candidate = self.load(release)
        state = read_state(self._folder)
        if state.active == release:
            return candidate
        self._require_eligible(candidate, state, by_operator)
        if canary is not None:
            self._try(candidate, canary)
        with changing(self._folder) as state:  # what has happened during the canary counts
            if state.active == release:
                return candidate
            self._require_eligible(candidate, state, by_operator)
            done = state.after(
                self._event(release, "activated"),
                active=release,
                previous=(*state.previous, state.active),
            )
            write_state(self._folder, done)
        return candidate

    def active(self) -> VerifiedRelease | None:
        """What serves, verified anew; None while the bare base serves. Raises like `load`."""
        release = self.active_id
        return None if release is None else self.load(release)

    def rollback(self) -> VerifiedRelease | None:
        """Return to what served before the active release; None when that is the bare base.

        Raises ReleaseError when nothing served before, or when the earlier one is altered.
        """
        with changing(self._folder) as state:
            if state.active is None or not state.previous:
                raise ReleaseError(
                    "there is nothing to roll back to: no release was ever activated here",
                    remedy="nothing to do: the base model serves",
                    code="release-none-earlier",
                )
            *rest, target = state.previous
            restored = None if target is None else self.load(target)
            turned_away = self._event(state.active, "rolled-back")
            done = state.after(turned_away, active=target, previous=tuple(rest))
            write_state(self._folder, done)
        return restored

    def withdraw(self, release: str, code: str) -> Withdrawn:
        """Never serve `release` again; where it serves, the last that served before it does.

        An earlier release that no longer verifies is passed over; the base is always there.
        """
        with changing(self._folder) as state:
            was_serving = state.active == release
            previous = [one for one in state.previous if one != release]
            serves = state.active
            if was_serving:
                serves = None
                while previous and (serves := previous.pop()) is not None:
                    if self._readable(serves) is not None:
                        break
                    serves = None
            done = state.after(
                self._event(release, "withdrawn", code), active=serves, previous=tuple(previous)
            )
            write_state(self._folder, done)
        return Withdrawn(was_serving, serves)

    def _try(self, candidate: VerifiedRelease, canary: Callable[[VerifiedRelease], None]) -> None:
        try:
            canary(candidate)
        except Exception as error:
            code = str(getattr(error, "finding", getattr(error, "code", "internal")))
            reason = str(getattr(error, "problem", type(error).__name__))
            refused = self._event(candidate.manifest.release, "refused", code, reason)
            with changing(self._folder) as state:
                write_state(self._folder, state.after(refused))
            raise

    def _require_eligible(
        self, candidate: VerifiedRelease, state: ServingState, by_operator: bool
    ) -> None:
        release = candidate.manifest.release
        if state.is_withdrawn(release):
            raise ReleaseError(
                f"release {release} was withdrawn by the coordinator",
                remedy="ask the coordinator's operator for a newer release",
                code="release-withdrawn",
            )
        if by_operator:
            return
        if state.is_rolled_back(release):
            raise ReleaseError(
                f"release {release} was rolled back here",
                remedy="ask the coordinator's operator for a newer release, or take it back with "
                f"`auricle site activate {release}`",
                code="release-rolled-back",
            )
        if state.active is not None:
            current = self.load(state.active).manifest
            if candidate.manifest.tree_size < current.tree_size:
                raise ReleaseError(
                    f"release {release} is older than {state.active}, which serves now",
                    remedy="run `auricle site rollback` if the older one is wanted",
                    code="release-older",
                )

    def _require_known_parent(self, manifest: ReleaseManifest) -> None:
        """Where the parent is held here, it must be the very one that the manifest names."""
        parent = manifest.parent
        known = parent is not None and _RELEASE_ID.fullmatch(parent)
        if parent is None or not known or not _names_release(self._folder / parent):
            return
        statement = (self._folder / parent / MANIFEST_NAME).read_bytes()
        signed = open_statement(statement, payload_type_of(ReleaseManifest), self._trusted)
        if hashlib.sha256(signed).hexdigest() != manifest.parent_sha256:
            raise ReleaseError(
                f"release {manifest.release} replaces another {parent} than the one held here",
                remedy="ask the coordinator's operator which history is true, and compare ledgers",
                code="release-parent",
            )

    def _readable(self, release: str) -> ReleaseManifest | None:
        try:
            return self.load(release).manifest
        except (ReleaseError, SignatureError):
            return None

    def _event(
        self, release: str, what: Happening, code: str = "", reason: str = ""
    ) -> ReleaseEvent:
        at = self._clock().isoformat(timespec="seconds")
        return ReleaseEvent(at, release, what, code, reason)

    def _verify(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        manifest = open_as(ReleaseManifest, statement, self._trusted)
        if not _RELEASE_ID.fullmatch(manifest.release) or manifest.release == POINTER_NAME:
            raise ReleaseError(
                "the release's name is not lower-case letters, digits, dots and dashes",
                remedy="ask the coordinator's operator to issue it under a plain name",
                code="release-name",
            )
        if len(adapter) > MAX_ADAPTER_BYTES:
            raise ReleaseError(
                f"the adapter is {len(adapter)} bytes; at most {MAX_ADAPTER_BYTES} are taken",
                remedy="ask the coordinator's operator for a smaller adapter",
                code="release-size",
            )
        if hashlib.sha256(adapter).hexdigest() != manifest.adapter_sha256:
            raise ReleaseError(
                f"the adapter of release {manifest.release} is not the one that was signed",
                remedy="run `auricle site rollback`, then ask the coordinator to send it again",
                code="release-hash",
            )
        if manifest.base_sha256 != self._base_sha256:
            raise ReleaseError(
                f"release {manifest.release} is for another base model than this site's",
                remedy="install the base that the release names, or refuse the release",
                code="release-base",
            )
        return manifest


def _names_release(path: Path) -> bool:
    return _RELEASE_ID.fullmatch(path.name) is not None and path.is_dir()
