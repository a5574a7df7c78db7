"""Signed statements: only what a trusted key sealed, exactly as it was sealed, opens."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP384R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from privacy.errors import PlanError, SignatureError
from privacy.parcel import Answer, ReleaseManifest, RoundOrder, UpdateHeader
from privacy.plan import RoundPlan
from privacy.signing import (
    Identity,
    PublicIdentity,
    open_as,
    open_statement,
    payload_type_of,
    seal,
    seal_statement,
)
from tests.privacy.plans import make_plan

KIND = "application/vnd.auricle.note+json"
OWN, OTHER = Identity.generate(), Identity.generate()
ORDER = RoundOrder("0a1b", 3, "aa" * 32, "bb" * 32, "cc" * 32, 17)
STATEMENTS: list[Any] = [
    make_plan(),
    ORDER,
    UpdateHeader("0a1b", 3, "north", "aa" * 32, "bb" * 32, 4096, "cc" * 32, 17),
    Answer("0a1b", 0, "north", "dd" * 32, "ok"),
    ReleaseManifest(
        release="r1",
        job="0a1b",
        rounds=10,
        base_sha256="aa" * 32,
        plan_sha256="bb" * 32,
        adapter_sha256="cc" * 32,
        parent=None,
        tree_head="dd" * 32,
        tree_size=4,
        issued_at="2026-01-01T00:00:00Z",
        epsilon_loc=math.inf,
        epsilon_sec=2.0,
        delta=1e-6,
    ),
]


def sealed_fields(cls: Any, fields: Any) -> bytes:
    return seal_statement(rfc8785.dumps(fields), payload_type_of(cls), OWN)


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda s: type(s).__name__)
def test_what_was_sealed_opens_equal(statement: Any) -> None:
    opened = open_as(type(statement), seal(statement, OWN), [OTHER.public, OWN.public])
    assert opened == statement


def test_an_untrusted_key_is_refused() -> None:
    for trusted in ([], [OTHER.public]):
        with pytest.raises(SignatureError) as caught:
            open_as(RoundOrder, seal(ORDER, OWN), trusted)
        assert caught.value.code == "signature-invalid"


def test_a_key_id_in_the_envelope_proves_nothing() -> None:
    envelope = json.loads(seal(ORDER, OTHER))
    envelope["signatures"][0]["keyid"] = OWN.public.key_id
    with pytest.raises(SignatureError) as caught:
        open_as(RoundOrder, json.dumps(envelope).encode(), [OWN.public])
    assert caught.value.code == "signature-invalid"


def test_a_statement_of_one_kind_never_passes_for_another() -> None:
    sealed = seal_statement(b"{}", KIND, OWN)
    with pytest.raises(SignatureError) as caught:
        open_statement(sealed, payload_type_of(RoundOrder), [OWN.public])
    assert caught.value.code == "statement-kind"
    relabelled = json.loads(sealed)
    relabelled["payloadType"] = payload_type_of(RoundOrder)
    with pytest.raises(SignatureError) as caught:
        open_statement(json.dumps(relabelled).encode(), payload_type_of(RoundOrder), [OWN.public])
    assert caught.value.code == "signature-invalid"


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_changed_byte_changes_the_meaning(data: st.DataObject) -> None:
    sealed = bytearray(seal(ORDER, OWN))
    place = data.draw(st.integers(0, len(sealed) - 1))
    sealed[place] ^= data.draw(st.integers(1, 255))
    try:
        opened = open_as(RoundOrder, bytes(sealed), [OWN.public])
    except SignatureError:
        return
    assert opened == ORDER


@settings(max_examples=100, deadline=None)
@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.text() | st.integers(),
        lambda x: (
            st.lists(x)
            | st.dictionaries(
                st.sampled_from(["payload", "payloadType", "signatures", "sig", "keyid"]), x
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_rubbish_is_refused_as_a_signature_error(data: bytes) -> None:
    with pytest.raises(SignatureError):
        open_statement(data, KIND, [OWN.public])


def test_deep_nesting_and_great_size_are_refused() -> None:
    with pytest.raises(SignatureError) as caught:
        open_statement(b"[" * 100_000, KIND, [OWN.public])
    assert caught.value.code == "statement-malformed"
    sealed = seal_statement(b"x" * 2000, KIND, OWN)
    assert open_statement(sealed, KIND, [OWN.public], max_bytes=len(sealed)) == b"x" * 2000
    with pytest.raises(SignatureError) as caught:
        open_statement(sealed, KIND, [OWN.public], max_bytes=len(sealed) - 1)
    assert caught.value.code == "statement-too-large"


ORDER_FIELDS = dataclasses.asdict(ORDER)


@pytest.mark.parametrize(
    "fields",
    [
        {**ORDER_FIELDS, "extra": 1},
        {name: value for name, value in ORDER_FIELDS.items() if name != "tree_size"},
        {**ORDER_FIELDS, "round": "3"},
        {**ORDER_FIELDS, "round": True},
        {**ORDER_FIELDS, "round": 3.5},
        {**ORDER_FIELDS, "job": None},
        {**ORDER_FIELDS, "job": ["0a1b"]},
        [],
        "order",
    ],
)
def test_signed_fields_must_be_exact(fields: Any) -> None:
    with pytest.raises(SignatureError) as caught:
        open_as(RoundOrder, sealed_fields(RoundOrder, fields), [OWN.public])
    assert caught.value.code == "statement-fields"


def test_signed_json_must_be_canonical() -> None:
    canonical = rfc8785.dumps(ORDER_FIELDS)
    for payload in (
        canonical.replace(b":", b": ", 1),
        canonical.replace(b'{"job":"0a1b"', b'{"job":"ffff","job":"0a1b"'),
    ):
        assert payload != canonical
        sealed = seal_statement(payload, payload_type_of(RoundOrder), OWN)
        with pytest.raises(SignatureError) as caught:
            open_as(RoundOrder, sealed, [OWN.public])
        assert caught.value.code == "statement-fields"


@pytest.mark.parametrize(
    "change",
    [
        {"sampling_rate": 0},
        {"sampling_rate": "0.25"},
        {"surprise": 1},
        {"noise_multiplier": "Infinity"},
        {"optimiser": {"name": "adam", "learning_rate": 0.1}},
        {"privacy_mode": "some"},
        {"adapter": None},
    ],
)
def test_a_signed_plan_is_checked_too(change: dict[str, Any]) -> None:
    fields = {**json.loads(make_plan().to_json()), **change}
    with pytest.raises(PlanError) as caught:
        open_as(RoundPlan, sealed_fields(RoundPlan, fields), [OWN.public])
    assert caught.value.code == "plan-invalid"


def test_a_manifest_of_before_its_later_fields_still_opens_and_has_one_encoding() -> None:
    first = {
        "release": "r1",
        "job": "0a",
        "rounds": 3,
        "base_sha256": "b" * 64,
        "plan_sha256": "c" * 64,
        "adapter_sha256": "d" * 64,
        "parent": None,
        "tree_head": "e" * 64,
        "tree_size": 9,
        "issued_at": "2026-01-01T00:00:00+00:00",
        "epsilon_loc": 4.0,
        "epsilon_sec": 2.0,
        "delta": 1e-6,
    }

    def opened(fields: dict[str, Any]) -> ReleaseManifest:
        return open_as(ReleaseManifest, sealed_fields(ReleaseManifest, fields), [OWN.public])

    manifest = opened(first)
    assert (manifest.license, manifest.parent_sha256, manifest.evaluation) == (
        "unknown",
        None,
        None,
    )
    assert opened(first | {"license": "mit"}).license == "mit"
    for field, default in (("license", "unknown"), ("parent_sha256", None), ("evaluation", None)):
        with pytest.raises(SignatureError):
            opened(first | {field: default})


def test_nan_is_never_sealed() -> None:
    with pytest.raises(rfc8785.CanonicalizationError):
        seal(dataclasses.replace(STATEMENTS[-1], epsilon_sec=math.nan), OWN)


def test_keys_are_saved_for_their_owner_only_and_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "site.pem"
    OWN.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Identity.load(path).public == OWN.public
    with pytest.raises(SignatureError) as caught:
        OTHER.save(path)
    assert caught.value.code == "key-exists"
    assert Identity.load(path).public == OWN.public


def test_bad_key_files_are_named_as_such(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    with pytest.raises(SignatureError) as caught:
        Identity.load(path)
    assert caught.value.code == "key-missing"
    curve = generate_private_key(SECP384R1())
    encodings = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8)
    secret = serialization.BestAvailableEncryption(b"secret")
    for content in (
        b"",
        b"nothing",
        curve.private_bytes(*encodings, serialization.NoEncryption()),
        Ed25519PrivateKey.generate().private_bytes(*encodings, secret),
    ):
        path.write_bytes(content)
        with pytest.raises(SignatureError) as caught:
            Identity.load(path)
        assert caught.value.code == "key-invalid"


def test_a_public_identity_is_named_by_its_key() -> None:
    assert PublicIdentity.from_pem(OWN.public.public_pem) == OWN.public
    for key_id, pem in (
        (OTHER.public.key_id, OWN.public.public_pem),
        (OWN.public.key_id, "no key"),
    ):
        with pytest.raises(SignatureError) as caught:
            PublicIdentity(key_id, pem)
        assert caught.value.code == "key-invalid"


def test_the_envelope_is_plain_dsse() -> None:
    """Anyone can verify with the DSSE specification and an Ed25519 library alone."""
    envelope = json.loads(seal_statement(b"hello", KIND, OWN))
    assert base64.b64decode(envelope["payload"]) == b"hello"
    public = serialization.load_pem_public_key(OWN.public.public_pem.encode())
    signed = b"DSSEv1 %d %s 5 hello" % (len(KIND), KIND.encode())
    public.verify(base64.b64decode(envelope["signatures"][0]["sig"]), signed)  # type: ignore[call-arg, union-attr]
