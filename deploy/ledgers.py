"""Opens the ledger of a home, whichever role it has; opening verifies the whole log (I4)."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from privacy.ledger import Ledger
from privacy.ledger_verify import Report, verify_export, verify_with_private
from privacy.private_log import PrivateLog
from privacy.signing import Identity, PublicIdentity
from privacy.store import open_engine


def open_ledger(root: Path) -> Ledger:
    """The ledger of a coordinator's or a site's home. Raises LedgerError if it does not verify."""
    return _open(root)[0]


def verify_home(root: Path) -> tuple[Report, Report | None]:
    """Export a home's ledger and verify the export, as an outsider with its public key would.

    A site's private log is verified with it; the second report is None for a coordinator.
    """
    ledger, owner = _open(root)
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        path, private = Path(folder) / "ledger.jsonl", Path(folder) / "private.jsonl"
        ledger.export(path)
        if (root / "coordinator.toml").is_file():
            return verify_export(path, [owner]), None
        open_private_log(root).export(private)
        return verify_with_private(path, private, [owner])


def open_private_log(root: Path) -> PrivateLog:
    """The private log of a site's home. Raises LedgerError if it does not verify."""
    url, identity, log_id = _site(root)
    return PrivateLog(open_engine(url), identity, log_id, _now)


def _open(root: Path) -> tuple[Ledger, PublicIdentity]:
    if (root / "coordinator.toml").is_file():
        from coordinator.home import CoordinatorHome

        home = CoordinatorHome(root)
        url = home.database_url(home.settings())
        identity = Identity.load(home.identity_file)
        log_id = f"coordinator/{identity.public.key_id[:16]}"
    else:
        url, identity, log_id = _site(root)
    return Ledger(open_engine(url), identity, log_id, _now), identity.public


def _site(root: Path) -> tuple[str, Identity, str]:
    from client_node.home import SiteHome, SiteSettings

    home = SiteHome(root)
    log_id = f"site/{SiteSettings.load(home.settings).site}"
    return home.database_url, Identity.load(home.site_key), log_id


def _now() -> datetime:
    return datetime.now(UTC)
