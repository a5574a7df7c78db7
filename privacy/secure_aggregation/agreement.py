"""Keys, masks and sealed shares, from `cryptography`'s primitives.

A mask is the AES-256 keystream in counter mode (SP 800-38A) under a key that HKDF-SHA256 (RFC 5869)
derives for it alone, so a zero counter never repeats. Agreement is X25519 (RFC 7748). The session's
hash salts every derivation and names say what a key is for: no key serves two rounds, two pairs or
two ends. Shape legend: D = trainable numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import rfc8785
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from privacy.secure_aggregation.errors import SecureAggregationError, require

SEED_BYTES = 16
KEY_BYTES = 32
NONCE_BYTES = 12
_NAME = "auricle/secure-aggregation/v1"

Words = NDArray[np.uint32] | NDArray[np.uint64]
RandomBytes = Callable[[int], bytes]


def mask_key(seed: bytes, session: bytes) -> X25519PrivateKey:
    """The X25519 key that `seed` (16 bytes) stands for; sharing out the seed shares out the key."""
    return X25519PrivateKey.from_private_bytes(_derive(seed, session, "mask-key"))


def public_hex(private: X25519PrivateKey) -> str:
    """The public half, as it is sent."""
    return private.public_key().public_bytes_raw().hex()


def pair_mask(
    private: X25519PrivateKey,
    peer_public: str,
    session: bytes,
    pair: tuple[str, str],
    *,
    size: int,
    word_bits: int,
) -> Words:
    """Mask [D] that the two sites of `pair` agree on; the first in name order adds it.

    Raises SecureAggregationError "secure-roster" for a peer's key that is no usable point.
    """
    key = _agree(private, peer_public, session, "pair-mask", *sorted(pair))
    return _words(key, size, word_bits)


def self_mask(seed: bytes, session: bytes, *, size: int, word_bits: int) -> Words:
    """Mask [D] of one site alone, from its seed."""
    return _words(_derive(seed, session, "self-mask"), size, word_bits)


def commitment(seed: bytes) -> str:
    """Hex SHA-256 that a site publishes of its own mask's 128-bit random seed."""
    return hashlib.sha256(_NAME.encode() + seed).hexdigest()


def seal_to(
    private: X25519PrivateKey,
    peer_public: str,
    plaintext: bytes,
    session: bytes,
    roster: str,
    *,
    sender: str,
    receiver: str,
    random: RandomBytes,
) -> str:
    """`plaintext` sealed by AES-256-GCM from `sender` to `receiver`, for this roster only."""
    key = _agree(private, peer_public, session, "shares", sender, receiver)
    nonce = random(NONCE_BYTES)
    bound = _bound(session, roster, sender, receiver)
    return (nonce + AESGCM(key).encrypt(nonce, plaintext, bound)).hex()


def open_from(
    private: X25519PrivateKey,
    peer_public: str,
    sealed: str,
    session: bytes,
    roster: str,
    *,
    sender: str,
    receiver: str,
) -> bytes:
    """The inverse of `seal_to`. Raises SecureAggregationError "secure-shares"."""
    key = _agree(private, peer_public, session, "shares", sender, receiver)
    try:
        data = bytes.fromhex(sealed)
        bound = _bound(session, roster, sender, receiver)
        return AESGCM(key).decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], bound)
    except (ValueError, InvalidTag) as error:
        raise SecureAggregationError(
            "sealed shares do not open",
            remedy="the site that sealed them, or who carried them, altered them",
            code="secure-shares",
        ) from error


def _agree(private: X25519PrivateKey, peer_public: str, session: bytes, *names: str) -> bytes:
    try:
        peer = X25519PublicKey.from_public_bytes(bytes.fromhex(peer_public))
        secret = private.exchange(peer)  # refuses points of small order
    except ValueError:
        require(False, "secure-roster", "a site's public key is not a usable X25519 point")
        raise
    return _derive(secret, session, *names)


def _derive(secret: bytes, session: bytes, *names: str) -> bytes:
    info = rfc8785.dumps([_NAME, *names])
    return HKDF(SHA256(), KEY_BYTES, salt=session, info=info).derive(secret)


def _bound(session: bytes, roster: str, sender: str, receiver: str) -> bytes:
    return rfc8785.dumps([_NAME, session.hex(), roster, sender, receiver])


def _words(key: bytes, size: int, word_bits: int) -> Words:
    keystream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    stream = keystream.update(bytes(size * word_bits // 8))
    return np.frombuffer(stream, "<u4" if word_bits == 32 else "<u8")
