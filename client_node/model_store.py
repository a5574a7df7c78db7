"""Releases at a site: verify, stage, activate, refuse, roll back (invariant I3).

A release is a `ReleaseManifest` signed by the coordinator and the adapter it names by SHA-256. It
lies in `releases/<id>/` exactly as it arrived, so that every load verifies the signature and the
hashes again: a file changed on disk after activation is refused like one changed on the wire.
What serves is named by one pointer file, `active.json`, which changes in a single `os.replace`;
a crash leaves either the old release or the new one active, never half of each.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path

from client_node.errors import SiteError
from client_node.home import write_private
from privacy.parcel import ReleaseManifest
from privacy.signing import PublicIdentity, open_as

MANIFEST_NAME = "manifest.dsse.json"
ADAPTER_NAME = "adapter_model.safetensors"
POINTER_NAME = "active.json"
MAX_ADAPTER_BYTES = 1 << 30
_RELEASE_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class ReleaseError(SiteError):
    """A release is refused: unsigned, altered, for another base, or not there."""

    code = "release-refused"
    exit_code = 33


@dataclasses.dataclass(frozen=True)
class VerifiedRelease:
    """A release whose signature and hashes held when it was read from disk."""

    manifest: ReleaseManifest
    adapter: bytes


@dataclasses.dataclass(frozen=True)
class _Pointer:
    """What serves now, and what served before it, latest last; None is the bare base.

    `rolled_back` were turned away by this site's operator.
    """

    active: str | None = None
    previous: tuple[str | None, ...] = ()
    rolled_back: tuple[str, ...] = ()


class ModelStore:
    """The releases of one site, bound to the coordinator keys and the base it trusts."""

    def __init__(self, folder: Path, trusted: Collection[PublicIdentity], base_sha256: str) -> None:
        """`folder` is the site's `releases/`; it is made, mode 0700, if missing."""
        self._folder = folder
        self._trusted = trusted
        self._base_sha256 = base_sha256
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def active_id(self) -> str | None:
        """Name of the release the pointer chooses; None while the bare base serves."""
        return self._pointer().active

    def stage(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        """Verify a release as received and keep it; it does not serve yet. Idempotent.

        Raises ReleaseError or SignatureError, in which case nothing is kept.
        """
        manifest = self._verify(statement, adapter)
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
        _sync_folder(self._folder)
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
        self, release: str, canary: Callable[[VerifiedRelease], None] | None = None
    ) -> VerifiedRelease:
        """Make a staged release the one that serves, after `canary` (which raises to refuse it).

        A release issued at an earlier coordinator ledger size than the active one is refused: a
        replayed old release must not undo a newer one; `rollback` does that, on purpose. So is one
        that was rolled back: a coordinator that sends it again must not undo the operator.
        """
        candidate = self.load(release)
        pointer = self._pointer()
        if pointer.active == release:
            return candidate
        if release in pointer.rolled_back:
            raise ReleaseError(
                f"release {release} was rolled back here",
                remedy="ask the coordinator's operator for a newer release",
                code="release-rolled-back",
            )
        if pointer.active is not None:
            current = self.load(pointer.active).manifest
            if candidate.manifest.tree_size < current.tree_size:
                raise ReleaseError(
                    f"release {release} is older than {pointer.active}, which serves now",
                    remedy="run `auricle site rollback` if the older one is wanted",
                    code="release-older",
                )
        if canary is not None:
            canary(candidate)
        previous = (*pointer.previous, pointer.active)
        self._point(dataclasses.replace(pointer, active=release, previous=previous))
        return candidate

    def active(self) -> VerifiedRelease | None:
        """What serves, verified anew; None while the bare base serves. Raises like `load`."""
        release = self.active_id
        return None if release is None else self.load(release)

    def rollback(self) -> VerifiedRelease | None:
        """Return to what served before the active release; None when that is the bare base.

        Raises ReleaseError when nothing served before, or when the earlier one is altered.
        """
        pointer = self._pointer()
        if pointer.active is None or not pointer.previous:
            raise ReleaseError(
                "there is nothing to roll back to: no release was ever activated here",
                remedy="nothing to do: the base model serves",
                code="release-none-earlier",
            )
        *rest, target = pointer.previous
        restored = None if target is None else self.load(target)
        rolled_back = (*pointer.rolled_back, pointer.active)
        self._point(_Pointer(target, tuple(rest), rolled_back))
        return restored

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

    def _pointer(self) -> _Pointer:
        path = self._folder / POINTER_NAME
        try:
            fields = json.loads(path.read_bytes())
            pointer = _Pointer(
                fields["active"], tuple(fields["previous"]), tuple(fields["rolled_back"])
            )
        except FileNotFoundError:
            return _Pointer()
        except (ValueError, TypeError, KeyError) as error:
            raise ReleaseError(
                f"{path} cannot be read: {type(error).__name__}",
                remedy=f"remove {path} to serve the base model, then activate a release again",
                code="release-pointer",
            ) from error
        return pointer

    def _point(self, pointer: _Pointer) -> None:
        data = json.dumps(dataclasses.asdict(pointer)).encode()
        write_private(self._folder / POINTER_NAME, data)
        _sync_folder(self._folder)


def _sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, as POSIX asks after a rename."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
