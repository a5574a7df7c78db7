"""Opens the ledger of a home, whichever role it has; opening verifies the whole log (I4)."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

from privacy.ledger import Ledger
from privacy.ledger_verify import Report, verify_export
from privacy.signing import Identity
from privacy.store import open_engine


def open_ledger(root: Path) -> Ledger:
    """The ledger of a coordinator's or a site's home. Raises LedgerError if it does not verify."""
    if (root / "coordinator.toml").is_file():
        from coordinator.home import CoordinatorHome

        home = CoordinatorHome(root)
        url = home.database_url(home.settings())
        return Ledger(open_engine(url), Identity.load(home.identity_file), "coordinator", _now)
    from client_node.home import SiteHome, SiteSettings

    site_home = SiteHome(root)
    name = SiteSettings.load(site_home.settings).site
    identity = Identity.load(site_home.site_key)
    return Ledger(open_engine(site_home.database_url), identity, f"site/{name}", _now)


def verify_home(root: Path) -> Report:
    """Export a home's ledger and verify the export, as an outsider with its public key would."""
    book = open_ledger(root)
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        path = Path(folder) / "ledger.jsonl"
        book.export(path)
        return verify_export(path, [book.public])


def _now() -> datetime:
    return datetime.now(UTC)
