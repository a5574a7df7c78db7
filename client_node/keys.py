"""A site's keys: made here, never sent; only public halves leave.

Two identities, because two protocols ask for different ones: Ed25519 signs parcels and the ledger
(`privacy.signing`), ECDSA P-384 authenticates the SuperNode to Flower's fleet API.
"""

from __future__ import annotations

import dataclasses
import secrets

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from client_node.errors import SiteError
from client_node.home import SiteHome, write_private
from privacy.signing import Identity, PublicIdentity

RUNTIME_SECRET_BYTES = 32


@dataclasses.dataclass(frozen=True)
class SiteKeys:
    """The site's signing identity and the public half of its node key (one OpenSSH line)."""

    identity: Identity
    node_public_openssh: str


def create_keys(home: SiteHome) -> SiteKeys:
    """Make the keys that are missing; existing ones are kept, so it is safe to call again."""
    if not home.site_key.exists():
        Identity.generate().save(home.site_key)
    if not home.node_key.exists():
        node_key = ec.generate_private_key(ec.SECP384R1())
        write_private(
            home.node_key,
            node_key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.OpenSSH,
                serialization.NoEncryption(),
            ),
        )
    return load_keys(home)


def load_keys(home: SiteHome) -> SiteKeys:
    """Read both keys. Raises SiteError where one is missing or of the wrong kind."""
    try:
        node_key = serialization.load_ssh_private_key(home.node_key.read_bytes(), password=None)
        identity = Identity.load(home.site_key)
    except (FileNotFoundError, ValueError) as error:
        raise SiteError(
            f"a key in {home.keys} is missing or unreadable",
            remedy="restore the keys folder from backup, or make a new site and join again",
            code="keys-missing",
        ) from error
    if not isinstance(node_key, ec.EllipticCurvePrivateKey):
        raise SiteError(
            f"{home.node_key} is not an elliptic-curve key",
            remedy="restore the keys folder from backup, or make a new site and join again",
            code="keys-missing",
        )
    public = node_key.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    return SiteKeys(identity, public.decode("ascii"))


def trusted_coordinator(home: SiteHome) -> PublicIdentity:
    """The coordinator pinned at enrolment. Raises SiteError before the site has joined."""
    try:
        return PublicIdentity.from_pem(home.coordinator_key.read_text(encoding="ascii"))
    except FileNotFoundError as error:
        raise SiteError(
            "this site has not joined a federation",
            remedy="run `auricle site join INVITE` with the invite the operator sent",
            code="not-enrolled",
        ) from error


def renew_runtime_secret(home: SiteHome) -> bytes:
    """A fresh secret for one run of SuperNode and worker, also written for the SuperNode."""
    secret = secrets.token_hex(RUNTIME_SECRET_BYTES).encode("ascii")
    write_private(home.runtime_secret, secret)
    return secret
