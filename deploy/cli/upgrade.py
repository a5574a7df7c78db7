"""`auricle coordinator upgrade` and `auricle site upgrade`: a home's database to this version."""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

import typer

from deploy.cli.homes import existing_coordinator, existing_site
from deploy.cli.output import Home, Json, emit

if TYPE_CHECKING:
    from privacy.schema import Upgrade


def add_to(coordinator: typer.Typer, site: typer.Typer) -> None:
    """Add the command to both roles."""
    epilog = "Example: auricle {} upgrade"
    coordinator.command("upgrade", epilog=epilog.format("coordinator"))(coordinator_upgrade)
    site.command("upgrade", epilog=epilog.format("site"))(site_upgrade)


def coordinator_upgrade(home: Home = None, as_json: Json = False) -> None:
    """Bring the coordinator's database to this version, once its service is stopped and backed up.

    All of it changes, or nothing does. There is no way down but the backup.
    """
    from coordinator.home import CoordinatorHome
    from coordinator.lease import upgrade_database
    from privacy.store import open_engine

    opened = CoordinatorHome(existing_coordinator(home))
    engine = open_engine(opened.database_url(opened.settings()))
    try:
        _report(upgrade_database(engine, time.time, time.sleep), as_json=as_json)
    finally:
        engine.dispose()


def site_upgrade(home: Home = None, as_json: Json = False) -> None:
    """Bring the site's database to this version, once its service is stopped and backed up.

    All of it changes, or nothing does. There is no way down but the backup.
    """
    from client_node.home import SiteHome
    from client_node.tables import upgrade_schema
    from privacy.store import open_engine

    engine = open_engine(SiteHome(existing_site(home)).database_url)
    try:
        _report(upgrade_schema(engine), as_json=as_json)
    finally:
        engine.dispose()


def _report(upgrades: list[Upgrade], *, as_json: bool) -> None:
    lines = [
        f"{one.room}: {one.after}, as it was"
        if one.before == one.after
        else f"{one.room}: {one.before or 'before revisions'} → {one.after}"
        for one in upgrades
    ]
    emit({"upgrades": [dataclasses.asdict(one) for one in upgrades]}, *lines, as_json=as_json)
