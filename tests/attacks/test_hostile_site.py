"""An enrolled site, or somebody with an invite, against the coordinator."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from coordinator.admission import Admission, admit
from coordinator.errors import EnrolmentError
from coordinator.flower_link import FlowerLink
from coordinator.planning import make_plan
from tests.coordinator.fakes import SPEC, FakeSite, Federation, SmallArtifacts, request, token_of


def with_payload(payload: object, **pieces: object) -> RecordDict:
    record = {"kind": "update", "statement": b"{}", "payload": payload}
    content = RecordDict({"parcel": ConfigRecord(record)})
    for name, piece in pieces.items():
        content[name.replace("_", "-")] = ConfigRecord({"payload": piece})
    return content


def with_array() -> RecordDict:
    """An array where a piece belongs: its .npy header must not be read."""
    content = with_payload(b"")
    header = b"\x93NUMPY\x01\x00\x10\x00{'descr': ("
    packed = Array(dtype="uint8", shape=(0,), stype="numpy.ndarray", data=header)
    content["piece-1"] = ArrayRecord({"packed": packed})
    return content


def damaged(kind: str, body: bytes) -> bytes:
    return f"{kind}  {len(body)}".encode() + b"\x00" + body


REPLIES = {
    "array for a piece": with_array(),
    "text for a payload": with_payload("text"),
    "numbers for a piece": with_payload(b"", piece_1=[1, 2]),
    "a piece too far": with_payload(b"", piece_2=b"x"),
    "message that is no protobuf": damaged("Message", b"\xff\xff\xff\xff\x01"),
    "config that is no protobuf": damaged("ConfigRecord", b"{"),
    "json too deep": damaged("RecordDict", b"[" * 100_000),
}


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES)
def test_no_reply_stops_the_coordinator(
    reply: RecordDict | bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a node uploads is parsed in the job thread, whose failure ends the service."""
    module = "coordinator.flower_link"
    monkeypatch.setattr(f"{module}.runtime_handlers.confirm_message_received", lambda *_: None)
    if isinstance(reply, RecordDict):
        message = SimpleNamespace(has_error=lambda: False, content=reply)
        monkeypatch.setattr(f"{module}.inflate_object_from_contents", lambda *_: message)
    link = object.__new__(FlowerLink)
    link._state = SimpleNamespace(get_object=lambda *_: reply)
    link._arriving = {"m": ("r", ["r"])}
    link._flights = {"m": ("north", 1)}
    delivery = link._fetch(SimpleNamespace(run_id=1, task=None), "m")
    assert delivery is not None
    assert (delivery.site, delivery.error_code) == ("north", "reply-malformed")


UNSUPPORTED_PEM = """-----BEGIN PUBLIC KEY-----
MCowBQYDK2UnAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=
-----END PUBLIC KEY-----
"""


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("node_public_openssh", "ssh-unknown AAAAC3NzaC1lZDI1NTE5AAAAIGb9"),
        ("node_public_openssh", "sk-ssh-ed25519@openssh.com AAAA"),
        ("node_public_openssh", "\ud800"),
        ("site_public_pem", UNSUPPORTED_PEM),
        ("site_public_pem", "\ud800"),
    ],
)
def test_odd_keys_are_refused_with_a_code(tmp_path, field: str, value: str) -> None:
    federation = Federation(tmp_path, ("north",))
    invite = federation.operations.invite("south", 3600, approve=True)
    site = FakeSite("south", federation.identity.public)
    enrolment = site.enrolment(token_of(invite, federation.identity.public))
    with pytest.raises(EnrolmentError):
        federation.operations.enrol(dataclasses.replace(enrolment, **{field: value}))


def test_two_empty_lots_without_noise_are_no_replay(tmp_path) -> None:
    """Equal zeros put the second honest site in quarantine."""
    identity = Federation(tmp_path, ("north",)).identity.public
    artifacts = SmallArtifacts().prepare(None, None)
    asked = request(privacy_mode="none", noise_multiplier=None)
    plan = make_plan(asked, artifacts, {"north", "south"}, job="ab" * 8, issued_at_s=1.8e9)
    south = FakeSite("south", identity)
    south.plans[plan.job] = plan
    parcel = south.sealed(plan.job, 1, np.zeros(SPEC.size, np.float32).tobytes())
    admit(parcel, Admission(plan, 1, "south", south.identity.public, seen=lambda _: True))
