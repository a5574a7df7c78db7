"""Admission: each refusal code, by an update that is right in everything else."""

from __future__ import annotations

import dataclasses
import hashlib
import zlib

import numpy as np
import pytest

from coordinator.admission import CHECKS, OPEN_CHECKS, Admission, admit, norm_bound
from coordinator.errors import AdmissionError
from coordinator.planning import make_plan
from privacy.parcel import Parcel
from privacy.signing import Identity
from privacy.update_encoding import encode
from tests.coordinator.fakes import SPEC, FakeSite, SmallArtifacts, request

JOB = "ab" * 8
ROUND = 2


@pytest.fixture(scope="module")
def plan():
    artifacts = SmallArtifacts().prepare(None, None)
    return make_plan(request(), artifacts, {"north", "west"}, job=JOB, issued_at_s=1.8e9)


@pytest.fixture(scope="module")
def site(plan):
    made = FakeSite("north", Identity.generate().public)
    made.plans[JOB] = plan
    return made


@pytest.fixture
def admission(plan, site):
    return Admission(plan, ROUND, "north", site.identity.public, seen=lambda _: False)


def packed(*values: float) -> bytes:
    return np.resize(np.array(values, np.float32), SPEC.size).tobytes()


GOOD = packed(0.5, -1.25, 2.0)


def code_of(parcel, admission) -> str:
    with pytest.raises(AdmissionError) as caught:
        admit(parcel, admission)
    assert caught.value.remedy
    return caught.value.code


def test_a_right_update_is_admitted(site, admission):
    header = admit(site.sealed(JOB, ROUND, GOOD), admission)
    assert header.payload_sha256 == hashlib.sha256(GOOD).hexdigest()


def test_kind_unexpected(site, admission):
    parcel = dataclasses.replace(site.sealed(JOB, ROUND, GOOD), kind="accepted")
    assert code_of(parcel, admission) == "kind-unexpected"


def test_signature_invalid_bit_flip(site, admission):
    parcel = site.sealed(JOB, ROUND, GOOD)
    spoilt = parcel.statement.replace(b'"sig":"', b'"sig":"00', 1)
    assert spoilt != parcel.statement
    assert code_of(Parcel("update", spoilt, GOOD), admission) == "signature-invalid"


def test_signature_invalid_other_sites_key(plan, admission):
    other = FakeSite("north", Identity.generate().public)
    other.plans[JOB] = plan
    assert code_of(other.sealed(JOB, ROUND, GOOD), admission) == "signature-invalid"


def test_signature_invalid_another_statement(site, admission):
    answer = site.answer("accepted", JOB, "0" * 64)
    assert code_of(Parcel("update", answer.statement, GOOD), admission) == "signature-invalid"


@pytest.mark.parametrize("statement", [b"", b"{}", b"\x80\x04N.", b"[" * 50_000])
def test_signature_invalid_no_statement_at_all(statement, admission):
    assert code_of(Parcel("update", statement, GOOD), admission) == "signature-invalid"


def test_site_mismatch(site, admission):
    assert code_of(site.sealed(JOB, ROUND, GOOD, site="west"), admission) == "site-mismatch"


def test_job_mismatch(site, admission):
    assert code_of(site.sealed(JOB, ROUND, GOOD, job="cd" * 8), admission) == "job-mismatch"


def test_plan_mismatch(site, admission):
    parcel = site.sealed(JOB, ROUND, GOOD, plan_sha256="0" * 64)
    assert code_of(parcel, admission) == "plan-mismatch"


@pytest.mark.parametrize("number", [ROUND - 1, ROUND + 1])
def test_round_mismatch_replay_of_another_round(site, admission, number):
    assert code_of(site.sealed(JOB, number, GOOD), admission) == "round-mismatch"


def test_payload_mismatch_swapped_payload(site, admission):
    parcel = dataclasses.replace(site.sealed(JOB, ROUND, GOOD), payload=packed(1.0))
    assert code_of(parcel, admission) == "payload-mismatch"


def test_size_mismatch(site, admission):
    assert code_of(site.sealed(JOB, ROUND, GOOD, size_bytes=7), admission) == "size-mismatch"


def test_update_replayed(site, admission):
    seen = {hashlib.sha256(GOOD).hexdigest()}
    replayed = dataclasses.replace(admission, seen=seen.__contains__)
    assert code_of(site.sealed(JOB, ROUND, GOOD), replayed) == "update-replayed"


@pytest.mark.parametrize("payload", [b"", GOOD[:-4], GOOD[:-1]])
def test_shape_mismatch(site, admission, payload):
    assert code_of(site.sealed(JOB, ROUND, payload), admission) == "shape-mismatch"


def test_update_oversized(site, admission):
    assert code_of(site.sealed(JOB, ROUND, GOOD + b"\0"), admission) == "update-oversized"
    parcel = Parcel("update", b" " * (1 << 20), GOOD)
    assert code_of(parcel, admission) == "update-oversized"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_update_not_finite(site, admission, value):
    parcel = site.sealed(JOB, ROUND, packed(0.5, value))
    assert code_of(parcel, admission) == "update-not-finite"


def test_norm_exceeded(site, admission, plan):
    largest = norm_bound(plan) / np.sqrt(SPEC.size)
    admit(site.sealed(JOB, ROUND, packed(largest * 0.999)), admission)
    parcel = site.sealed(JOB, ROUND, packed(largest * 1.001))
    assert code_of(parcel, admission) == "norm-exceeded"


def test_norm_exceeded_does_not_overflow(site, admission):
    parcel = site.sealed(JOB, ROUND, packed(3e38))
    assert code_of(parcel, admission) == "norm-exceeded"


def test_noise_missing(site, admission):
    assert code_of(site.sealed(JOB, ROUND, packed(0.0)), admission) == "noise-missing"


def test_an_empty_lot_is_right_where_no_noise_is_asked(site, admission, plan):
    open_plan = dataclasses.replace(plan, privacy_mode="none", noise_multiplier=0.0)
    site.plans[JOB] = open_plan
    try:
        admit(site.sealed(JOB, ROUND, packed(0.0)), dataclasses.replace(admission, plan=open_plan))
    finally:
        site.plans[JOB] = plan


def test_noise_of_a_whole_job_is_never_refused(plan):
    """An honest site's norm stays below the bound: 1,000 rounds of noise and a lot of 2·q·N̄."""
    source = np.random.default_rng(7)
    noise = source.normal(size=(1000, SPEC.size)) * plan.noise_multiplier * plan.clipping_norm
    signal = 2 * plan.sampling_rate * plan.expected_subjects * plan.clipping_norm
    assert np.linalg.norm(noise, axis=1).max() + signal < norm_bound(plan)


def test_every_check_has_a_test_here():
    import pathlib

    text = pathlib.Path(__file__).read_text(encoding="utf-8")
    codes = [code for code, _ in (*CHECKS, *OPEN_CHECKS)]
    assert len(set(codes)) == len(codes)
    before = ("kind-unexpected", "update-oversized", "signature-invalid")
    assert all(f'== "{code}"' in text for code in (*codes, *before))


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_a_small_update_passes_the_same_checks_on_the_numbers_that_it_means(plan, site, encoding):
    small = dataclasses.replace(plan, update_encoding=encoding)
    encoded = FakeSite("north", Identity.generate().public)
    encoded.plans[JOB] = small
    admission = Admission(small, ROUND, "north", encoded.identity.public, seen=lambda _: False)
    coins = np.random.default_rng(0)

    def sent(payload: bytes) -> Parcel:
        return encoded.sealed(JOB, ROUND, payload)

    assert admit(sent(encode(GOOD, encoding, coins)), admission)
    plain = zlib.decompress(encode(GOOD, encoding, coins))
    wrong = {
        "bomb": zlib.compress(bytes(50_000)),  # as large as may be sent
        "one too many": zlib.compress(plain + b"\0"),
        "rubbish": b"\xff" * 20,
        "nothing": b"",
    }
    codes = {name: code_of(sent(payload), admission) for name, payload in wrong.items()}
    assert codes == dict.fromkeys(wrong, "shape-mismatch")
    oversized = sent(bytes(admission.most_bytes + 1))
    assert code_of(oversized, admission) == "update-oversized"
    far = encode(packed(norm_bound(small) * 2), encoding, coins)
    assert code_of(sent(far), admission) == "norm-exceeded"
    zero = encode(bytes(len(GOOD)), encoding, coins)
    assert code_of(sent(zero), admission) == "noise-missing"
    infinite = {
        "bfloat16": b"\x7f" * SPEC.size + b"\x80" * SPEC.size,
        "int8": np.array([np.inf], "<f4").tobytes() + b"\1" * SPEC.size,
    }[encoding]
    assert code_of(sent(zlib.compress(infinite)), admission) == "update-not-finite"
