"""Opens the ledger of a home, whichever role it has; opening verifies the whole log (I4)."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from privacy.ledger import Ledger
from privacy.ledger_verify import Report, verify_export
from privacy.signing import Identity, PublicIdentity
from privacy.store import open_engine


def open_ledger(root: Path) -> Ledger:
    """The ledger of a coordinator's or a site's home. Raises LedgerError if it does not verify."""
    return _open(root)[0]


def verify_home(root: Path) -> Report:
    """Export a home's ledger and verify the export, as an outsider with its public key would."""
    ledger, owner = _open(root)
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        path = Path(folder) / "ledger.jsonl"
        ledger.export(path)
        return verify_export(path, [owner])


def _open(root: Path) -> tuple[Ledger, PublicIdentity]:
    if (root / "coordinator.toml").is_file():
        from coordinator.home import CoordinatorHome

        home = CoordinatorHome(root)
        url = home.database_url(home.settings())
        identity = Identity.load(home.identity_file)
        log_id = f"coordinator/{identity.public.key_id[:16]}"
    else:
        from client_node.home import SiteHome, SiteSettings

        site_home = SiteHome(root)
        url = site_home.database_url
        identity = Identity.load(site_home.site_key)
        log_id = f"site/{SiteSettings.load(site_home.settings).site}"
    return Ledger(open_engine(url), identity, log_id, _now), identity.public


def _now() -> datetime:
    return datetime.now(UTC)
