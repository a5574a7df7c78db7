"""The one encoding of a DSSE envelope that Auricle writes, taken apart at the speed of a ledger.

An envelope over one Ed25519 signature is {"payload", "payloadType", "signatures": [{"keyid",
"sig"}]} in RFC 8785 canonical JSON, with base64 as in RFC 4648 section 4. What is signed is DSSE's
pre-authentication encoding (https://github.com/secure-systems-lab/dsse/blob/master/protocol.md).
`privacy.signing` opens any conforming envelope with securesystemslib; a ledger demands these exact
bytes, which need no JSON parser, and securesystemslib stays the oracle of the tests.
"""

from __future__ import annotations

import base64
import binascii
import re

_ENVELOPE = re.compile(
    rb'\{"payload":"([A-Za-z0-9+/]*={0,2})","payloadType":"([a-z0-9./+-]+)",'
    rb'"signatures":\[\{"keyid":"([0-9a-f]{64})","sig":"([A-Za-z0-9+/]{86}==)"\}\]\}'
)


def signed_bytes(payload: bytes, payload_type: str) -> bytes:
    """DSSE's PAE: what the signature of an envelope is over."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def write_envelope(payload: bytes, payload_type: str, key_id: str, signature: bytes) -> bytes:
    """The envelope's bytes. `payload_type` and `key_id` must need no JSON escapes."""
    return b'{"payload":"%b","payloadType":"%b","signatures":[{"keyid":"%b","sig":"%b"}]}' % (
        base64.b64encode(payload),
        payload_type.encode(),
        key_id.encode(),
        base64.b64encode(signature),
    )


def read_envelope(sealed: bytes, payload_type: str, key_id: str) -> tuple[bytes, bytes]:
    """(payload, signature) of an envelope of that type and key; the signature is not checked.

    Raises ValueError where `sealed` is not, byte for byte, what `write_envelope` makes of them.
    """
    parts = _ENVELOPE.fullmatch(sealed)
    if parts is None:
        raise ValueError("its envelope is not written the one way it should be")
    payload_text, kind, key, signature_text = parts.groups()
    if kind != payload_type.encode():
        raise ValueError("it is a statement of another kind")
    if key != key_id.encode():
        raise ValueError("another key signed it")
    return _exact_base64(payload_text), _exact_base64(signature_text)


def _exact_base64(text: bytes) -> bytes:
    data = binascii.a2b_base64(text)
    # The last digit before padding has bits that no byte holds: only zero is the one way.
    if binascii.b2a_base64(data, newline=False) != text:
        raise ValueError("its base64 is not written the one way it should be")
    return data
