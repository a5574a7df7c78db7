"""`auricle site rotate-key`: a new signing key in the place of the present one.

The coordinator first, then the ledgers, then the key file. Killed anywhere, the command goes on
where it stood when it is run again: the new key is kept from its first moment, the coordinator
takes the same request twice, and a ledger that has been handed on is left alone. The node key,
which authenticates the connection, stays; who has lost that joins again.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from datetime import datetime
from typing import Protocol

import rfc8785
from sqlalchemy import Engine

from client_node.enrol import post_json
from client_node.errors import SiteError
from client_node.home import SiteHome, SiteSettings
from client_node.keys import load_keys, trusted_coordinator
from privacy.errors import LedgerError
from privacy.ledger import Ledger
from privacy.private_log import PrivateLog
from privacy.signing import Identity, seal_statement
from privacy.store import open_engine

ROTATE_PATH = "/v1/auricle/rotate"
ROTATION_TYPE = "application/vnd.auricle.key-rotation+json"

Clock = Callable[[], datetime]


@dataclasses.dataclass(frozen=True)
class Rotated:
    """Which key was replaced, and by which."""

    site: str
    old_key_id: str
    key_id: str


class _Log(Protocol):
    def rotate(self, successor: Identity, fields: dict[str, str]) -> object: ...


def rotate_key(home: SiteHome, clock: Clock) -> Rotated:
    """Replace the signing key of an enrolled site whose service is stopped.

    Raises SiteError ("rotation-refused", "not-enrolled"), LinkError where the coordinator cannot
    be reached, and LedgerError. A service that runs meanwhile stops at its next ledger entry.
    """
    settings = SiteSettings.load(home.settings)
    trusted_coordinator(home)
    present = load_keys(home).identity
    successor = _successor(home)
    rotated = Rotated(settings.site, present.public.key_id, successor.public.key_id)
    _tell_coordinator(home, settings, present, successor)
    engine = open_engine(home.database_url)
    try:
        _hand_over(engine, rotated, present, successor, clock)
    finally:
        engine.dispose()
    home.next_site_key.replace(home.site_key)
    _settle(home)
    return rotated


def _successor(home: SiteHome) -> Identity:
    if not home.next_site_key.exists():
        Identity.generate().save(home.next_site_key)
    return Identity.load(home.next_site_key)


def _tell_coordinator(
    home: SiteHome, settings: SiteSettings, present: Identity, successor: Identity
) -> None:
    pem = successor.public.public_pem
    exchange = rfc8785.dumps(
        {"site": settings.site, "key_id": present.public.key_id, "public_pem": pem}
    )
    request = {
        "site": settings.site,
        "public_pem": pem,
        "statement": seal_statement(exchange, ROTATION_TYPE, present).decode("ascii"),
        "proof": seal_statement(exchange, ROTATION_TYPE, successor).decode("ascii"),
    }
    ca_pem = home.ca.read_text(encoding="ascii")
    accepted, answer = post_json(settings.coordinator_url, ca_pem, ROTATE_PATH, request)
    if not accepted or answer.get("key_id") != successor.public.key_id:
        raise SiteError(
            f"the coordinator did not take the new key: {answer.get('code', 'no reason given')}",
            remedy="the present key stays; ask the operator, naming this code",
            code="rotation-refused",
        )


def _hand_over(
    engine: Engine, rotated: Rotated, present: Identity, successor: Identity, clock: Clock
) -> None:
    """Both logs under the new key. The private log first: it is found by the ledger's key."""
    log_id = f"site/{rotated.site}"
    openers: tuple[Callable[[Identity], _Log], ...] = (
        lambda key: PrivateLog(engine, key, log_id, clock),
        lambda key: Ledger(engine, key, log_id, clock),
    )
    fields = {"old_key_id": rotated.old_key_id, "key_id": rotated.key_id}
    for opened in openers:
        try:
            opened(present).rotate(successor, fields)
        except LedgerError as error:
            if error.code != "ledger-key":
                raise
            opened(successor)  # an earlier run came this far; anybody else's log is refused


def _settle(home: SiteHome) -> None:
    folder = os.open(home.keys, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
