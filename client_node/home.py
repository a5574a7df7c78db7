"""A site's home: one folder that holds everything of one institution, and its settings file.

Every folder is 0700 and every file 0600: recordings, keys and the ledger belong to the service
account alone.
"""

from __future__ import annotations

import dataclasses
import os
import re
import tomllib
from pathlib import Path
from typing import Any, Self

import tomli_w

from client_node.errors import SiteError

SITE_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclasses.dataclass(frozen=True)
class SiteHome:
    """The paths of a site's home."""

    root: Path

    @property
    def settings(self) -> Path:
        """`site.toml`."""
        return self.root / "site.toml"

    @property
    def policy(self) -> Path:
        """`policy.toml`, the site's own rules."""
        return self.root / "policy.toml"

    @property
    def canary(self) -> Path:
        """The recordings on which each release is tried before it serves, if any were chosen."""
        return self.root / "canary.json"

    @property
    def keys(self) -> Path:
        """Folder of keys and trusted certificates."""
        return self.root / "keys"

    @property
    def site_key(self) -> Path:
        """Ed25519 private key that signs parcels and the ledger."""
        return self.keys / "site.pem"

    @property
    def next_site_key(self) -> Path:
        """The key that is to replace `site_key`, while that is under way."""
        return self.keys / "site.next.pem"

    @property
    def node_key(self) -> Path:
        """P-384 private key, OpenSSH format, that authenticates the SuperNode."""
        return self.keys / "node_key"

    @property
    def runtime_secret(self) -> Path:
        """Secret between the SuperNode and this site's worker."""
        return self.keys / "runtime.secret"

    @property
    def coordinator_key(self) -> Path:
        """Public Ed25519 key of the coordinator, pinned at enrolment."""
        return self.keys / "coordinator.pem"

    @property
    def ca(self) -> Path:
        """Certificate authority of the coordinator's TLS listener, pinned at enrolment."""
        return self.keys / "ca.pem"

    @property
    def database(self) -> Path:
        """SQLite file of recordings, outbox, budget and ledger, unless settings name another."""
        return self.root / "auricle.db"

    @property
    def database_url(self) -> str:
        """URL of the database, as `site.toml` says. Raises SiteError."""
        return SiteSettings.load(self.settings).database_url or f"sqlite:///{self.database}"

    @property
    def corrections(self) -> Path:
        """Sound of corrected dictation, kept for training."""
        return self.root / "corrections"

    @property
    def features(self) -> Path:
        """Cached encoder states."""
        return self.root / "features"

    @property
    def releases(self) -> Path:
        """Verified releases, one folder each."""
        return self.root / "releases"

    @property
    def receipts(self) -> Path:
        """Exact copies of everything that left."""
        return self.root / "receipts"

    @property
    def logs(self) -> Path:
        """Logs: codes, counts and seconds only."""
        return self.root / "logs"

    @property
    def enrolled(self) -> bool:
        """Whether the coordinator's key and CA are pinned."""
        return self.coordinator_key.exists() and self.ca.exists()

    def create(self) -> None:
        """Make the folders, private to this account."""
        folders = (self.root, self.keys, self.features, self.releases, self.receipts, self.logs)
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.chmod(0o700)


@dataclasses.dataclass(frozen=True)
class SiteSettings:
    """`site.toml`.

    Attributes:
        site: the name the coordinator knows this site by.
        base_folder: prepared base model.
        base_sha256: hash that the base must have; empty accepts the folder as it is prepared.
        coordinator_url: https://host:port; empty until the site has joined.
        rows_per_step: recordings in one forward pass; bounds memory, changes nothing else.
        one_subject_per_step: no forward pass holds recordings of two subjects, so that they share
            no rounding; slower.
        poll_s: seconds between two questions to the coordinator.
        threads: CPU threads of training; 0 leaves torch's default.
        database_url: SQLite or PostgreSQL URL; empty for auricle.db in the home.
    """

    site: str
    base_folder: str
    base_sha256: str = ""
    coordinator_url: str = ""
    rows_per_step: int = 16
    one_subject_per_step: bool = False
    poll_s: float = 0.25
    threads: int = 0
    database_url: str = ""

    def __post_init__(self) -> None:
        """Check ranges. Raises SiteError naming the field."""
        if not SITE_NAME.fullmatch(self.site):
            raise _settings_error("site must be lower-case letters, digits and hyphens")
        if self.rows_per_step < 1 or self.threads < 0 or not 0.01 <= self.poll_s <= 60:
            raise _settings_error("rows_per_step, threads or poll_s is out of range")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check `site.toml`. Raises SiteError."""
        fields = read_toml(path)
        known = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        if unknown := sorted(set(fields) - set(known)):
            raise _settings_error(f"{path} has an unknown setting: {', '.join(unknown)}")
        for name, value in fields.items():
            # TOML writes 1 for 1.0.
            if type(value).__name__ not in {known[name], known[name].replace("float", "int")}:
                raise _settings_error(f"{path}: {name} has a wrong type")
        try:
            return cls(**fields)
        except TypeError as error:
            raise _settings_error(f"{path} lacks a setting") from error

    def save(self, path: Path) -> None:
        """Write `site.toml` atomically."""
        write_private(path, tomli_w.dumps(dataclasses.asdict(self)).encode())


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file. Raises SiteError where it is missing or malformed."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SiteError(
            f"{path} does not exist", remedy="create the site with `auricle site init`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SiteError(f"{path} is not valid TOML: {error}", remedy="correct the file") from error


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, readable by this account only, on disk on return."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _settings_error(problem: str) -> SiteError:
    return SiteError(problem, remedy="correct site.toml", code="settings-invalid")
