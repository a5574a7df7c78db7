"""The fixtures of a site, for attacks on it."""

from __future__ import annotations

from tests.client_node.conftest import coordinator, nano, one_thread, site

__all__ = ["coordinator", "nano", "one_thread", "site"]
