"""The coordinator's home: one folder with its settings, keys, databases and releases."""

from __future__ import annotations

import dataclasses
import os
import secrets
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import tomli_w

from coordinator.errors import CoordinatorError
from coordinator.registry import Endpoint
from coordinator.tls import Credential, make_authority, make_server
from privacy.certificates import Expiry, expiry_of
from privacy.signing import Identity

SETTINGS_FILE = "coordinator.toml"


@dataclasses.dataclass(frozen=True)
class CoordinatorSettings:
    """coordinator.toml.

    Attributes:
        public_host: address that the TLS listener binds.
        public_port: its port; 0 lets the system choose, for tests.
        public_names: host names and IP addresses of the certificate; sites are told the first.
        admin_port: port of the operators' listener, on loopback always.
        database_url: SQLite or PostgreSQL URL; empty for auricle.db in the home.
        max_request_bytes: largest request that the public listener takes.
        evaluation_manifest: public recordings on which each release is measured; empty for none.
        release_license: licence of the releases, as the Hugging Face hub names licences.
        release_base_model: name of the base model on that hub, for the model card.
    """

    public_host: str = "0.0.0.0"  # noqa: S104 - sites connect from outside; only the fleet API is here
    public_port: int = 8443
    public_names: tuple[str, ...] = ("localhost", "127.0.0.1")
    admin_port: int = 8444
    database_url: str = ""
    max_request_bytes: int = 32 * 1024 * 1024
    evaluation_manifest: str = ""
    release_license: str = "unknown"
    release_base_model: str = ""

    def save(self, path: Path) -> None:
        """Write the settings as TOML."""
        fields = dataclasses.asdict(self) | {"public_names": list(self.public_names)}
        _write_private(path, tomli_w.dumps(fields).encode())  # the URL may hold a password

    @classmethod
    def load(cls, path: Path) -> CoordinatorSettings:
        """Read the settings. Raises CoordinatorError naming the fault."""
        try:
            fields: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise _bad(f"there is no {path}", "run `auricle coordinator init` first") from error
        except tomllib.TOMLDecodeError as error:
            raise _bad(f"{path} is not TOML: {error}", "correct that line") from error
        defaults = dataclasses.asdict(cls())
        for name, value in fields.items():
            expected = list if name == "public_names" else type(defaults.get(name))
            if name not in defaults or type(value) is not expected:
                raise _bad(f"{path}: {name} is unknown or of the wrong type", "correct that line")
        if not fields.get("public_names", ["-"]):
            raise _bad(f"{path}: public_names is empty", "name the host that sites connect to")
        names = tuple(fields.pop("public_names", defaults["public_names"]))
        return cls(**fields, public_names=names)


@dataclasses.dataclass(frozen=True)
class CoordinatorHome:
    """Paths of a coordinator's home. `create` makes one."""

    root: Path

    @property
    def settings_file(self) -> Path:
        """Settings as TOML."""
        return self.root / SETTINGS_FILE

    @property
    def identity_file(self) -> Path:
        """Ed25519 key that signs plans, orders, releases, invites and the ledger."""
        return self.root / "keys" / "coordinator.pem"

    @property
    def ca_file(self) -> Path:
        """Certificate of the CA that sites trust; its key lies beside it as ca.key."""
        return self.root / "tls" / "ca.pem"

    @property
    def server_certificate_file(self) -> Path:
        """Certificate of the TLS listener; its key lies beside it as server.key."""
        return self.root / "tls" / "server.pem"

    @property
    def server_key_file(self) -> Path:
        """Private key of the TLS listener."""
        return self.root / "tls" / "server.key"

    @property
    def admin_token_file(self) -> Path:
        """Bearer token of the admin API."""
        return self.root / "admin.token"

    @property
    def flower_database(self) -> Path:
        """The embedded SuperLink's own SQLite file."""
        return self.root / "flower.db"

    @property
    def releases(self) -> Path:
        """Released adapters with their manifests."""
        return self.root / "releases"

    @property
    def logs(self) -> Path:
        """Log files."""
        return self.root / "logs"

    def settings(self) -> CoordinatorSettings:
        """The settings. Raises CoordinatorError."""
        return CoordinatorSettings.load(self.settings_file)

    def database_url(self, settings: CoordinatorSettings) -> str:
        """Where the coordinator's tables and ledger are."""
        return settings.database_url or f"sqlite:///{self.root / 'auricle.db'}"

    def endpoint(self, settings: CoordinatorSettings, port: int) -> Endpoint:
        """What invites tell sites; `port` is the one really bound."""
        name = settings.public_names[0]
        host = f"[{name}]" if ":" in name else name
        return Endpoint(f"https://{host}:{port}", self.ca_file.read_text(encoding="ascii"))

    def admin_token(self) -> str:
        """The admin API's bearer token."""
        return self.admin_token_file.read_text(encoding="ascii").strip()

    def expiries(self) -> tuple[Expiry, ...]:
        """When the certificates of the sites' listener end."""
        return (
            expiry_of(
                self.server_certificate_file.read_bytes(),
                "server certificate",
                "run `auricle coordinator renew-certificate`, then restart the coordinator",
            ),
            expiry_of(
                self.ca_file.read_bytes(),
                "certificate authority",
                "set up a new coordinator and let every site join it: they trust this one alone",
            ),
        )

    def renew_server(self, now: datetime) -> Expiry:
        """Put a new server certificate, with a new key, in the place of the present one.

        The listener takes it at its next start.
        """
        ca_key = self.ca_file.with_suffix(".key").read_bytes()
        authority = Credential(self.ca_file.read_bytes(), ca_key)
        server = make_server(authority, self.settings().public_names, now)
        # The key last: a listener that starts between the two refuses the pair, and says so.
        _write_private(self.server_certificate_file, server.certificate_pem)
        _write_private(self.server_key_file, server.key_pem)
        return self.expiries()[0]

    @classmethod
    def create(cls, root: Path, settings: CoordinatorSettings, now: datetime) -> CoordinatorHome:
        """Make a home with new keys. Raises CoordinatorError where one exists already."""
        home = cls(root)
        if home.settings_file.exists():
            raise CoordinatorError(
                f"{root} is a coordinator's home already",
                remedy="start it, or choose another folder",
                code="home-exists",
            )
        for folder in (root, home.identity_file.parent, home.ca_file.parent, home.releases):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        home.logs.mkdir(mode=0o700, exist_ok=True)
        Identity.generate().save(home.identity_file)
        authority = make_authority("Auricle coordinator CA", now)
        server = make_server(authority, settings.public_names, now)
        _write_private(home.ca_file, authority.certificate_pem)
        _write_private(home.ca_file.with_suffix(".key"), authority.key_pem)
        _write_private(home.server_certificate_file, server.certificate_pem)
        _write_private(home.server_key_file, server.key_pem)
        _write_private(home.admin_token_file, secrets.token_urlsafe(32).encode())
        settings.save(home.settings_file)  # last: a home is complete once it has settings
        return home


def _write_private(path: Path, content: bytes) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)


def _bad(problem: str, remedy: str) -> CoordinatorError:
    return CoordinatorError(problem, remedy=remedy, code="settings-invalid")
