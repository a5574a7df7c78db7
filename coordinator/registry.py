"""The registry: who may take part. One-time signed invites, enrolment, revocation, quarantine.

An invite is a signed statement that names a site and carries a random token; the registry keeps
only the token's SHA-256. A site enrols by signing, with its own new key, the token's hash and its
node key: possession of the key is proved, and nobody can bind a site's name to another's keys.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import secrets
from collections.abc import Callable
from typing import Any

import rfc8785
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)
from sqlalchemy import Engine, or_, select
from sqlalchemy.orm import Session

from coordinator.errors import CoordinatorError, EnrolmentError
from coordinator.journal import note
from coordinator.rotation import Rotation, retired_keys, rotate
from coordinator.store import InviteRow, RetiredKeyRow, SiteRow
from privacy.errors import AuricleError
from privacy.signing import Identity, PublicIdentity, open_statement, seal_statement
from privacy.store import reading, writing

INVITE_FORMAT = "auricle/invite/v1"
INVITE_TYPE = "application/vnd.auricle.invite+json"
ENROLMENT_TYPE = "application/vnd.auricle.enrolment+json"
SITE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_TOKEN_BYTES = 32
_STATEMENT_LIMIT_BYTES = 16 * 1024


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where sites find this coordinator and by which certificates they know it."""

    coordinator_url: str
    ca_pem: str


@dataclasses.dataclass(frozen=True)
class Enrolment:
    """A site's request to join, as it arrives over TLS."""

    invite_token: str
    site: str
    site_public_pem: str
    node_public_openssh: str
    statement: bytes


@dataclasses.dataclass(frozen=True)
class SiteRecord:
    """An enrolled site; `approved`, `revoked` and `quarantine_code` say whether it may take part.

    `ledger_key_id` names the key that it enrolled with, which began its ledger.
    """

    name: str
    identity: PublicIdentity
    node_public: str
    ledger_key_id: str
    enrolled_at_s: float
    approved: bool
    revoked: bool
    quarantine_code: str | None

    @property
    def active(self) -> bool:
        """Whether the site may take part in rounds."""
        return self.admitted and self.quarantine_code is None

    @property
    def admitted(self) -> bool:
        """Whether the site's node may connect."""
        return self.approved and not self.revoked


class Registry:
    """Invites and sites, in the coordinator's database."""

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        clock: Callable[[], float],
        new_token: Callable[[], str] = lambda: secrets.token_urlsafe(_TOKEN_BYTES),
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._clock = clock
        self._new_token = new_token

    def invite(
        self, site: str, endpoint: Endpoint, valid_for_s: float, *, approve: bool = False
    ) -> bytes:
        """A signed invite for `site`, good once within `valid_for_s` seconds.

        Whoever enrols with it waits for `approve`, unless the invite approves them beforehand.
        """
        if not SITE_NAME.fullmatch(site):
            raise EnrolmentError(
                "a site's name is 1 to 63 lower-case letters, digits and inner hyphens",
                remedy="choose a name such as st-mary-hospital",
                code="site-name-invalid",
            )
        token = self._new_token()
        expires_at_s = self._clock() + valid_for_s
        row = InviteRow(
            token_sha256=_sha256(token),
            site=site,
            expires_at=expires_at_s,
            approve=approve,
            used_by_key_id=None,
        )
        with writing(self._engine) as session:
            session.add(row)
            digest = {"token_sha256": row.token_sha256}
            note(session, "invite.issued", {"site": site, "approve": approve} | digest)
        fields: dict[str, Any] = {
            "format": INVITE_FORMAT,
            "site": site,
            "token": token,
            "coordinator_url": endpoint.coordinator_url,
            "ca_pem": endpoint.ca_pem,
            "coordinator_public_pem": self._identity.public.public_pem,
            "expires_at": expires_at_s,
        }
        return seal_statement(rfc8785.dumps(fields), INVITE_TYPE, self._identity)

    def enrol(self, enrolment: Enrolment) -> SiteRecord:
        """Enrol a site. The same request again (a lost reply) gives the same record.

        Raises EnrolmentError: site-key-invalid, node-key-invalid, proof-invalid, invite-unknown,
        invite-site-mismatch, invite-used, invite-expired, site-exists, key-in-use.
        """
        identity = _site_identity(enrolment.site_public_pem)
        node_public = _node_public(enrolment.node_public_openssh)
        token_sha256 = _sha256(enrolment.invite_token)
        _check_proof(enrolment, identity, token_sha256)
        with writing(self._engine) as session:
            invite = session.get(InviteRow, token_sha256)
            if again := self._enrolled_before(session, invite, identity, node_public):
                return _record(again)
            approved = self._spend(invite, enrolment.site, identity)
            _check_free(session, enrolment.site, identity, node_public)
            now_s = self._clock()
            row = SiteRow(
                key_id=identity.key_id,
                name=enrolment.site,
                public_pem=identity.public_pem,
                node_public=node_public,
                ledger_key_id=identity.key_id,
                enrolled_at=now_s,
                approved_at=now_s if approved else None,
                revoked_at=None,
                quarantine_code=None,
            )
            session.add(row)
            fields = {"site": row.name, "key_id": row.key_id, "approved": approved}
            note(session, "site.enrolled", fields)
            return _record(row)

    def approve(self, name: str) -> SiteRecord:
        """Let an enrolled site in. Raises CoordinatorError if `name` is not enrolled."""
        with writing(self._engine) as session:
            row = _active_row(session, name)
            if row.approved_at is None:
                row.approved_at = self._clock()
                note(session, "site.approved", {"site": name, "key_id": row.key_id})
            return _record(row)

    def revoke(self, name: str) -> SiteRecord:
        """Shut `name` out, from its next call on. Raises CoordinatorError if it is not enrolled."""
        with writing(self._engine) as session:
            row = _active_row(session, name)
            row.revoked_at = self._clock()
            note(session, "site.revoked", {"site": name, "key_id": row.key_id})
            return _record(row)

    def restore(self, name: str) -> SiteRecord:
        """Lift a quarantine. Raises CoordinatorError if `name` is not enrolled."""
        with writing(self._engine) as session:
            row = _active_row(session, name)
            row.quarantine_code = None
            note(session, "site.restored", {"site": name, "key_id": row.key_id})
            return _record(row)

    def rotate(self, rotation: Rotation) -> PublicIdentity:
        """Replace a site's signing key; as `coordinator.rotation.rotate`."""
        return rotate(self._engine, rotation, self._clock)

    def retired(self, name: str) -> tuple[PublicIdentity, ...]:
        """Keys that the site `name` has replaced."""
        return retired_keys(self._engine, name)

    def sites(self) -> list[SiteRecord]:
        """All sites ever enrolled, in order of name, then of enrolment."""
        query = select(SiteRow).order_by(SiteRow.name, SiteRow.enrolled_at)
        with reading(self._engine) as session:
            return [_record(row) for row in session.scalars(query)]

    def active(self) -> dict[str, SiteRecord]:
        """Sites that may take part now, by name."""
        return {site.name: site for site in self.sites() if site.active}

    def _spend(self, invite: InviteRow | None, site: str, identity: PublicIdentity) -> bool:
        """Use the invite up; whether it approves the site."""
        _require(invite is not None, "invite-unknown", "the invite was not issued here")
        assert invite is not None
        _require(invite.site == site, "invite-site-mismatch", "the invite is for another site")
        _require(invite.used_by_key_id is None, "invite-used", "the invite has been used")
        _require(self._clock() < invite.expires_at, "invite-expired", "the invite has expired")
        invite.used_by_key_id = identity.key_id
        return invite.approve

    @staticmethod
    def _enrolled_before(
        session: Session, invite: InviteRow | None, identity: PublicIdentity, node_public: str
    ) -> SiteRow | None:
        if invite is None or invite.used_by_key_id != identity.key_id:
            return None
        row = session.get(SiteRow, identity.key_id)
        same = row is not None and row.revoked_at is None and row.node_public == node_public
        return row if same else None


def quarantine(session: Session, name: str, code: str) -> None:
    """Keep `name` out of rounds until an operator restores it, within the caller's transaction."""
    row = session.scalar(select(SiteRow).where(SiteRow.name == name, SiteRow.revoked_at.is_(None)))
    if row is not None and row.quarantine_code is None:
        row.quarantine_code = code
        note(session, "site.quarantined", {"site": name, "key_id": row.key_id, "code": code})


def _active_row(session: Session, name: str) -> SiteRow:
    row = session.scalar(select(SiteRow).where(SiteRow.name == name, SiteRow.revoked_at.is_(None)))
    if row is None:
        raise CoordinatorError(
            f"no site named {name} is enrolled",
            remedy="list the sites and check the name",
            code="site-unknown",
        )
    return row


def _site_identity(public_pem: str) -> PublicIdentity:
    try:
        return PublicIdentity.from_pem(public_pem)
    except AuricleError as error:
        raise _refusal("site-key-invalid", "the site's key is not an Ed25519 key") from error


def _node_public(openssh: str) -> str:
    try:
        key = load_ssh_public_key(openssh.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refusal("node-key-invalid", "the node key is not an OpenSSH key") from error
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise _refusal("node-key-invalid", "the node key is not on the curve P-384")
    return key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()


def _check_proof(enrolment: Enrolment, identity: PublicIdentity, token_sha256: str) -> None:
    expected = {
        "token_sha256": token_sha256,
        "site": enrolment.site,
        "node_public": enrolment.node_public_openssh,
    }
    try:
        payload = open_statement(
            enrolment.statement, ENROLMENT_TYPE, (identity,), max_bytes=_STATEMENT_LIMIT_BYTES
        )
        proved = json.loads(payload)
    except (AuricleError, ValueError) as error:
        raise _refusal("proof-invalid", "the site's signature does not verify") from error
    _require(proved == expected, "proof-invalid", "the site signed something else")


def _check_free(session: Session, name: str, identity: PublicIdentity, node_public: str) -> None:
    named = select(SiteRow).where(SiteRow.name == name, SiteRow.revoked_at.is_(None))
    _require(session.scalar(named) is None, "site-exists", "a site of this name is enrolled")
    keyed = select(SiteRow).where(
        or_(
            SiteRow.key_id == identity.key_id,
            SiteRow.ledger_key_id == identity.key_id,
            SiteRow.node_public == node_public,
        )
    )
    unused = session.scalar(keyed) is None and session.get(RetiredKeyRow, identity.key_id) is None
    _require(unused, "key-in-use", "one of the keys was enrolled before")


def _require(holds: bool, code: str, problem: str) -> None:
    if not holds:
        raise _refusal(code, problem)


def _refusal(code: str, problem: str) -> EnrolmentError:
    return EnrolmentError(
        problem,
        remedy="ask the coordinator's operator for a new invite and join again",
        code=code,
    )


def _record(row: SiteRow) -> SiteRecord:
    return SiteRecord(
        name=row.name,
        identity=PublicIdentity(key_id=row.key_id, public_pem=row.public_pem),
        node_public=row.node_public,
        ledger_key_id=row.ledger_key_id,
        enrolled_at_s=row.enrolled_at,
        approved=row.approved_at is not None,
        revoked=row.revoked_at is not None,
        quarantine_code=row.quarantine_code,
    )


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
