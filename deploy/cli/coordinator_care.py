"""`auricle coordinator status` and `renew-certificate`: is all well, and for how long."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from deploy.cli.admin_client import AdminClient
from deploy.cli.homes import existing_coordinator
from deploy.cli.output import Home, Json, emit
from deploy.coordinator import admin_address
from deploy.errors import OfflineError

if TYPE_CHECKING:
    from pathlib import Path

    from privacy.certificates import Expiry


def add_to(app: typer.Typer) -> None:
    """Add both commands to `auricle coordinator`."""
    app.command(epilog="Example: auricle coordinator status --json")(status)
    app.command(epilog="Example: auricle coordinator renew-certificate")(renew_certificate)


def certificate_fields(expiries: tuple[Expiry, ...], now: datetime) -> list[dict[str, Any]]:
    """Certificates as a command's --json shows them."""
    return [
        {
            "certificate": one.certificate,
            "ends_at": one.at.isoformat(),
            "days_left": one.days_left(now),
            "warning": one.warning(now),
        }
        for one in expiries
    ]


def warnings(expiries: tuple[Expiry, ...], now: datetime) -> list[str]:
    """A line for each certificate that ends within 30 days."""
    return [f"Warning: {said}" for one in expiries if (said := one.warning(now))]


def status(home: Home = None, as_json: Json = False) -> None:
    """Whether it runs, which sites wait or take part, its latest job, its certificates."""
    from coordinator.home import CoordinatorHome

    root = existing_coordinator(home)
    now, expiries = datetime.now(UTC), CoordinatorHome(root).expiries()
    running = _running(root)
    lines = ["It does not run: auricle coordinator start"]
    if running is not None:
        job = running["latest_job"]
        lines = [
            f"Sites: {running['active']} active, {running['waiting']} waiting for approval, "
            f"{running['quarantined']} in quarantine; {running['online']} online",
            f"Latest job: {job['job']}, {job['state']}" if job else "No job yet.",
        ]
    emit(
        {"running": running is not None, "certificates": certificate_fields(expiries, now)}
        | (running or {}),
        *lines,
        *(f"{one.certificate}: until {one.at:%Y-%m-%d}" for one in expiries),
        *warnings(expiries, now),
        as_json=as_json,
    )


def renew_certificate(home: Home = None, as_json: Json = False) -> None:
    """Make a new server certificate from the coordinator's own authority; restart to use it.

    Sites notice nothing: they trust the authority.
    """
    from coordinator.home import CoordinatorHome

    renewed = CoordinatorHome(existing_coordinator(home)).renew_server(datetime.now(UTC))
    emit(
        {"ends_at": renewed.at.isoformat()},
        f"The new certificate is good until {renewed.at:%Y-%m-%d}. Restart the coordinator.",
        as_json=as_json,
    )


def _running(root: Path) -> dict[str, Any] | None:
    """What the running coordinator says; None where none answers."""
    try:
        with AdminClient(*admin_address(root)) as admin:
            sites, jobs = admin.get("/admin/sites"), admin.get("/admin/jobs")
            latest = admin.get(f"/admin/jobs/{jobs[-1]}") if jobs else None
    except OfflineError:
        return None
    enrolled = [site for site in sites if not site["revoked"]]
    return {
        "active": sum(site["active"] for site in enrolled),
        "waiting": sum(not site["approved"] for site in enrolled),
        "quarantined": sum(site["quarantine_code"] is not None for site in enrolled),
        "online": sum(site["online"] for site in enrolled),
        "latest_job": latest and {"job": latest["job"], "state": latest["state"]},
    }
