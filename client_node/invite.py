"""The invite: one signed file that an operator hands to a site, out of band.

It carries where the coordinator is and how to know it (its CA and its Ed25519 key), and a one-time
token. It is signed by the key it names, which shows that nobody altered it on the way after it was
made; that the key is the operator's is what the site's administrator confirms by the fingerprint.
"""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509

from client_node.errors import SiteError
from privacy.errors import AuricleError
from privacy.signing import PublicIdentity, open_statement

INVITE_FORMAT = "auricle/invite/v1"
INVITE_TYPE = "application/vnd.auricle.invite+json"


@dataclasses.dataclass(frozen=True)
class Invite:
    """What an invite says, once its signature has been checked.

    Attributes:
        site: the name under which the coordinator will know this site.
        token: one-time secret; spent by the first site that enrols with it.
        coordinator_url: https://host:port of the TLS listener.
        ca_pem: certificate authority of that listener.
        coordinator: the key that signs plans, orders and releases.
        expires_at: when the token stops being good.
    """

    site: str
    token: str
    coordinator_url: str
    ca_pem: str
    coordinator: PublicIdentity
    expires_at: datetime


def read_invite(path: Path, now: datetime) -> Invite:
    """Read and verify an invite file.

    Raises SiteError, codes "invite-missing", "invite-invalid" and "invite-expired".
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SiteError(
            f"the invite {path} cannot be read: {error.strerror}",
            remedy="give the path of the invite file that the operator sent",
            code="invite-missing",
        ) from error
    try:
        invite = _open(data)
    except (
        AuricleError,
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise SiteError(
            f"{path} is not an intact invite of this version",
            remedy="ask the operator to send the invite again, and do not edit it",
            code="invite-invalid",
        ) from error
    if invite.expires_at <= now:
        raise SiteError(
            f"the invite expired at {invite.expires_at.isoformat(timespec='minutes')}",
            remedy="ask the operator for a new invite; check this machine's clock if it is new",
            code="invite-expired",
        )
    return invite


def _open(data: bytes) -> Invite:
    # The key is read from the statement that it must then verify; see the top of the file.
    claimed = json.loads(_unverified_payload(data))
    coordinator = PublicIdentity.from_pem(claimed["coordinator_public_pem"])
    fields: dict[str, Any] = json.loads(open_statement(data, INVITE_TYPE, (coordinator,)))
    expected = {field.name for field in dataclasses.fields(Invite)} - {"coordinator"}
    if set(fields) != expected | {"coordinator_public_pem", "format"}:
        raise ValueError("unknown or missing fields")
    if fields["format"] != INVITE_FORMAT:
        raise ValueError("unknown format")
    address = urlsplit(fields["coordinator_url"])
    if address.scheme != "https" or not address.hostname or address.port is None:
        raise ValueError("not an https URL with a port")
    x509.load_pem_x509_certificate(fields["ca_pem"].encode("ascii"))
    return Invite(
        site=str(fields["site"]),
        token=str(fields["token"]),
        coordinator_url=f"https://{address.netloc}",
        ca_pem=fields["ca_pem"],
        coordinator=coordinator,
        expires_at=datetime.fromtimestamp(float(fields["expires_at"]), UTC),
    )


def _unverified_payload(data: bytes) -> bytes:
    from securesystemslib.dsse import Envelope

    payload: bytes = Envelope.from_dict(json.loads(data)).payload
    return payload
