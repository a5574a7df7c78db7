"""The coordinator's home as the command line uses it."""

from __future__ import annotations

from pathlib import Path


def admin_address(root: Path) -> tuple[str, str]:
    """URL and bearer token of the admin listener. Raises CoordinatorError on a broken home."""
    from coordinator.home import CoordinatorHome

    home = CoordinatorHome(root)
    return f"http://127.0.0.1:{home.settings().admin_port}", home.admin_token()
