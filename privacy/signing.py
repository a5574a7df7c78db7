"""Signed statements: Ed25519 identities and DSSE envelopes over canonical JSON.

Keys are `cryptography`'s; envelopes are securesystemslib's Dead Simple Signing Envelope, whose
pre-authentication encoding binds the payload type, so a statement of one kind never passes for
another (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md). Payloads are RFC 8785
canonical JSON; opening demands the exact canonical bytes, which leaves no room for a missing,
unknown, duplicate or coerced field.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import re
from collections.abc import Collection
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import TypeAdapter, ValidationError
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as EnvelopeError
from securesystemslib.signer import SSlibKey

from privacy.envelope import signed_bytes, write_envelope
from privacy.errors import PlanError, SignatureError
from privacy.plan import RoundPlan

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    Statement = TypeVar("Statement", bound=DataclassInstance)

MAX_STATEMENT_BYTES = 1 << 20
_INFINITY = "Infinity"  # JSON has no infinity, yet the ε of an unprotected release is one


@dataclasses.dataclass(frozen=True)
class PublicIdentity:
    """Public half of an Ed25519 identity, named by the SHA-256 of its 32 raw key bytes.

    Raises SignatureError (code "key-invalid") when the PEM is not an Ed25519 public key or
    `key_id` does not name it.
    """

    key_id: str
    public_pem: str

    def __post_init__(self) -> None:
        """Check that the name belongs to the key."""
        if self.key_id != _key_id(self._key):
            raise _bad_key("the key id does not belong to the public key")

    @classmethod
    def from_pem(cls, public_pem: str) -> Self:
        """The identity of a PEM SubjectPublicKeyInfo. Raises SignatureError."""
        return cls._of(_read_public(public_pem))

    @classmethod
    def from_raw(cls, raw: bytes) -> Self:
        """The identity of 32 raw key bytes (RFC 8032). Raises ValueError."""
        return cls._of(Ed25519PublicKey.from_public_bytes(raw))

    @property
    def raw_hex(self) -> str:
        """The 32 raw key bytes, in hex."""
        return self._key.public_bytes_raw().hex()

    @classmethod
    def _of(cls, key: Ed25519PublicKey) -> Self:
        pem = key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(_key_id(key), pem.decode())

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this identity's Ed25519 signature over `message`."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True

    @cached_property
    def _key(self) -> Ed25519PublicKey:
        return _read_public(self.public_pem)

    def _verifier(self) -> Any:
        return SSlibKey.from_crypto(self._key, keyid=self.key_id)


class Identity:
    """Private Ed25519 identity. Make one with `generate` or `load`."""

    def __init__(self, private_key: Ed25519PrivateKey) -> None:
        self._private_key = private_key
        self.public = PublicIdentity._of(private_key.public_key())

    @classmethod
    def generate(cls) -> Self:
        """A new identity from the operating system's random source."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a PEM PKCS#8 file. Raises SignatureError, codes "key-missing" and "key-invalid"."""
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise SignatureError(
                f"the private key {path} cannot be read: {error.strerror}",
                remedy="restore the key file from your backup, or enrol again with a new key",
                code="key-missing",
            ) from error
        except (ValueError, TypeError) as error:
            raise _bad_key(f"{path} is not an unencrypted PEM PKCS#8 private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise _bad_key(f"{path} holds a key that is not Ed25519")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write PEM PKCS#8, mode 0600. Raises SignatureError "key-exists" if `path` exists."""
        pem = self._private_key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError as error:
            raise SignatureError(
                f"{path} already exists, and a key is never overwritten",
                remedy="move the old key away first if it is really to be replaced",
                code="key-exists",
            ) from error
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())

    def sign(self, message: bytes) -> bytes:
        """Ed25519 signature over `message`, 64 bytes."""
        return self._private_key.sign(message)


def seal_statement(payload: bytes, payload_type: str, identity: Identity) -> bytes:
    """DSSE envelope, as canonical JSON bytes, of `payload` signed by `identity`."""
    signature = identity.sign(signed_bytes(payload, payload_type))
    return write_envelope(payload, payload_type, identity.public.key_id, signature)


def open_statement(
    data: bytes,
    payload_type: str,
    trusted: Collection[PublicIdentity],
    max_bytes: int = MAX_STATEMENT_BYTES,
) -> bytes:
    """Payload of an envelope that one of `trusted` signed as `payload_type`.

    Raises SignatureError, codes "statement-too-large", "statement-malformed" (no envelope),
    "statement-kind" (another payload type) and "signature-invalid" (nobody trusted signed it).
    """
    if len(data) > max_bytes:
        raise _bad_statement(f"it has {len(data)} bytes, over {max_bytes}", "statement-too-large")
    try:
        envelope = Envelope.from_dict(json.loads(data))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _bad_statement("it is not a DSSE envelope", "statement-malformed") from error
    if envelope.payload_type != payload_type:
        raise _bad_statement("it is a statement of another kind", "statement-kind")
    try:
        envelope.verify([key._verifier() for key in trusted], threshold=1)
    except (EnvelopeError, ValueError) as error:
        raise _bad_statement("no trusted key signed it", SignatureError.code) from error
    payload: bytes = envelope.payload
    return payload


def payload_type_of(cls: type[DataclassInstance]) -> str:
    """DSSE payload type of a dataclass: RoundPlan is application/vnd.auricle.round-plan+json."""
    kind = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()
    return f"application/vnd.auricle.{kind}+json"


def seal(statement: DataclassInstance, identity: Identity) -> bytes:
    """Envelope of a frozen dataclass such as RoundPlan, RoundOrder, UpdateHeader or Answer.

    Raises rfc8785.CanonicalizationError for a number that JSON cannot carry exactly (NaN, or an
    integer beyond 2**53); a top-level float may be +∞. A field with "omit_default" in its metadata
    is left out at its default: so a statement may gain fields, and has one encoding still.
    """
    return seal_statement(_canonical(statement), payload_type_of(type(statement)), identity)


def open_as(
    cls: type[Statement],
    data: bytes,
    trusted: Collection[PublicIdentity],
    max_bytes: int = MAX_STATEMENT_BYTES,
) -> Statement:
    """The dataclass that one of `trusted` sealed; the inverse of `seal`.

    Raises SignatureError as `open_statement` does, and for signed fields that are not exactly
    those of `cls`: PlanError for a RoundPlan, SignatureError "statement-fields" otherwise.
    """
    payload = open_statement(data, payload_type_of(cls), trusted, max_bytes)
    try:
        fields = json.loads(payload)
        for field in dataclasses.fields(cls):
            if field.type in ("float", float) and fields.get(field.name) == _INFINITY:
                fields[field.name] = math.inf
        # Strict JSON mode: no coercions, arrays for tuples; `dumps` writes ∞ as pydantic reads it.
        statement: Statement = _adapter(cls).validate_json(json.dumps(fields), strict=True)
        exact = _canonical(statement) == payload
    except PlanError:
        raise
    except (ValidationError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise _bad_fields(cls) from error
    if not exact:
        raise _bad_fields(cls)
    return statement


@cache
def _adapter(cls: type[Statement]) -> TypeAdapter[Statement]:
    return TypeAdapter(cls)


def _canonical(statement: DataclassInstance) -> bytes:
    fields = dataclasses.asdict(statement)
    for field in dataclasses.fields(statement):
        if field.metadata.get("omit_default") and fields[field.name] == field.default:
            del fields[field.name]
    return rfc8785.dumps(
        {name: _INFINITY if value == math.inf else value for name, value in fields.items()}
    )


def _read_public(public_pem: str) -> Ed25519PublicKey:
    try:
        key = serialization.load_pem_public_key(public_pem.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad_key("the text is not a PEM public key") from error
    if not isinstance(key, Ed25519PublicKey):
        raise _bad_key("the public key is not Ed25519")
    return key


def _key_id(key: Ed25519PublicKey) -> str:
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _bad_key(what: str) -> SignatureError:
    return SignatureError(
        what, remedy="give the Ed25519 key file that Auricle wrote", code="key-invalid"
    )


def _bad_statement(what: str, code: str) -> SignatureError:
    return SignatureError(
        f"a signed statement was refused: {what}",
        remedy="compare the key ids on both sides; if they agree, treat the sender as compromised",
        code=code,
    )


def _bad_fields(cls: type[DataclassInstance]) -> SignatureError | PlanError:
    error = PlanError if issubclass(cls, RoundPlan) else SignatureError
    return error(
        f"a correctly signed {cls.__name__} has fields that this version does not know",
        remedy="run the same Auricle version on both sides",
        code=error.code if issubclass(cls, RoundPlan) else "statement-fields",
    )
