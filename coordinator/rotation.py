"""Key rotation: a site replaces its signing key, and the old one signs nothing any more.

The site signs the exchange twice: with its present key, which vouches for the new one, and with the
new key, which shows that the site holds it. The site's name, ledger and budget stay as they are.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable

from sqlalchemy import Engine, or_, select
from sqlalchemy.orm import Session

from coordinator.errors import EnrolmentError
from coordinator.journal import note
from coordinator.store import RetiredKeyRow, SiteRow
from privacy.errors import AuricleError
from privacy.signing import PublicIdentity, open_statement
from privacy.store import reading, writing

ROTATION_TYPE = "application/vnd.auricle.key-rotation+json"
_STATEMENT_LIMIT_BYTES = 16 * 1024


@dataclasses.dataclass(frozen=True)
class Rotation:
    """A site's request, as it arrives over TLS; both statements are over the same bytes.

    Attributes:
        site: the site's name.
        public_pem: its new key.
        statement: {site, key_id, public_pem} signed by the present key, `key_id`.
        proof: the same, signed by the new key.
    """

    site: str
    public_pem: str
    statement: bytes
    proof: bytes


def rotate(engine: Engine, rotation: Rotation, clock: Callable[[], float]) -> PublicIdentity:
    """Make the new key the site's own. The same request again (a lost reply) changes nothing.

    Raises EnrolmentError: site-unknown, site-key-invalid, proof-invalid, key-in-use.
    """
    with writing(engine) as session:
        row = session.scalar(
            select(SiteRow).where(SiteRow.name == rotation.site, SiteRow.revoked_at.is_(None))
        )
        if row is None:
            raise _refusal("site-unknown", "no site of this name is enrolled")
        successor = _new_key(rotation)
        if row.key_id == successor.key_id:
            return successor
        _check_statements(rotation, row, successor)
        _check_unused(session, successor)
        retired = {"key_id": row.key_id, "public_pem": row.public_pem, "site": row.name}
        session.add(RetiredKeyRow(**retired, retired_at=clock()))
        fields = {"site": row.name, "old_key_id": row.key_id, "key_id": successor.key_id}
        note(session, "site.key-rotated", fields)
        row.key_id, row.public_pem = successor.key_id, successor.public_pem
    return successor


def retired_keys(engine: Engine, site: str) -> tuple[PublicIdentity, ...]:
    """Keys that `site` has replaced."""
    query = select(RetiredKeyRow.public_pem).where(RetiredKeyRow.site == site)
    with reading(engine) as session:
        return tuple(PublicIdentity.from_pem(pem) for pem in session.scalars(query))


def _new_key(rotation: Rotation) -> PublicIdentity:
    try:
        return PublicIdentity.from_pem(rotation.public_pem)
    except AuricleError as error:
        raise _refusal("site-key-invalid", "the new key is not an Ed25519 key") from error


def _check_statements(rotation: Rotation, row: SiteRow, successor: PublicIdentity) -> None:
    present = PublicIdentity(key_id=row.key_id, public_pem=row.public_pem)
    expected = {
        "site": row.name,
        "key_id": present.key_id,
        "public_pem": successor.public_pem,
    }
    for statement, key in ((rotation.statement, present), (rotation.proof, successor)):
        try:
            proved = json.loads(
                open_statement(statement, ROTATION_TYPE, (key,), max_bytes=_STATEMENT_LIMIT_BYTES)
            )
        except (AuricleError, ValueError) as error:
            raise _refusal("proof-invalid", "a signature does not verify") from error
        if proved != expected:
            raise _refusal("proof-invalid", "the site signed something else")


def _check_unused(session: Session, successor: PublicIdentity) -> None:
    taken = (
        select(SiteRow.key_id).where(
            or_(SiteRow.key_id == successor.key_id, SiteRow.ledger_key_id == successor.key_id)
        ),
        select(RetiredKeyRow.key_id).where(RetiredKeyRow.key_id == successor.key_id),
    )
    if any(session.scalar(query) is not None for query in taken):
        raise _refusal("key-in-use", "the new key was enrolled before")


def _refusal(code: str, problem: str) -> EnrolmentError:
    return EnrolmentError(
        problem,
        remedy="ask the coordinator's operator how this site stands",
        code=code,
    )
