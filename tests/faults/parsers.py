"""Every parser that reads bytes from outside, with valid bytes to spoil and what it may raise."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import soundfile
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import strategies as st

from client_node import enrol
from client_node.decoding.decoder import RecordingDecoder
from client_node.flower_worker import MESSAGE_TYPE, message_to_parcel
from client_node.invite import INVITE_FORMAT, INVITE_TYPE, Invite, read_invite
from client_node.manifest import read_manifest
from coordinator.admission import Admission, admit
from coordinator.flower_content import content_to_parcel
from coordinator.registry import Enrolment
from coordinator.request import parse_request, request_json
from coordinator.tls import make_authority
from model_core.adapter import load_adapter
from model_core.base import SpeechBase
from model_core.basis import basis_from_bytes
from privacy.ledger import Ledger
from privacy.ledger_proof import check_proof, prove_entry, prove_growth
from privacy.ledger_verify import verify_export
from privacy.parcel import Answer, Parcel, ReleaseManifest, RoundOrder, UpdateHeader
from privacy.plan import RoundPlan
from privacy.signing import Identity, open_as, payload_type_of, seal, seal_statement
from privacy.store import open_engine
from privacy.update_encoding import UpdateEncodingError, decode, encode
from tests.client_node.harness import Coordinator, TickingClock, make_plan
from tests.client_node.test_release import adapter_bytes
from tests.coordinator.fakes import FakeSite, Federation, request, token_of
from tests.faults.spoiling import anything, json_bytes, spoiled_json

NOW = datetime.datetime(2026, 11, 23, tzinfo=datetime.UTC)
STATEMENTS = (RoundPlan, RoundOrder, UpdateHeader, Answer, ReleaseManifest)


@dataclasses.dataclass(frozen=True)
class Parser:
    """`read` takes what `bytes_` makes; only `allowed` may come out of it, besides an answer."""

    bytes_: st.SearchStrategy[Any]
    read: Callable[[Any], object]
    allowed: tuple[type[Exception], ...] = ()


def _contents(kind: str) -> st.SearchStrategy[RecordDict]:
    """What Flower may carry in place of a parcel of `kind`, whole parcels among it."""
    value = st.one_of(
        st.binary(max_size=40),
        st.text(max_size=10),
        st.integers(-(2**62), 2**62),
        st.lists(st.integers(0, 255), max_size=4),
        st.just(kind),
    )
    known = {"kind": st.just(kind) | value, "statement": st.binary() | value, "payload": value}
    record = st.fixed_dictionaries({}, optional=known).map(ConfigRecord)
    array = st.binary(max_size=40).map(
        lambda data: ArrayRecord({"packed": Array("uint8", (0,), "numpy.ndarray", data)})
    )
    names = st.sampled_from(("parcel", "piece-1", "piece-2", "piece-01", "payload"))
    return st.dictionaries(names, st.one_of(record, array), max_size=4).map(RecordDict)


def _message(content: RecordDict) -> SimpleNamespace:
    return SimpleNamespace(metadata=SimpleNamespace(message_type=MESSAGE_TYPE), content=content)


class Parsers:
    """The parsers, over one small federation's valid statements and files in `folder`."""

    def __init__(self, folder: Path, base: SpeechBase, decoder: RecordingDecoder) -> None:
        self._folder = folder
        self._base = base
        self._decoder = decoder
        self._identity = Identity.generate()
        self._trusted = (self._identity.public,)
        self._plan, self._basis = make_plan(base)
        self._statements = self._make_statements()
        self._ledger = self._make_ledger()

    def all(self) -> dict[str, Parser]:
        """Each parser by the name of what it reads."""
        return {
            **self._of_parcels(),
            **self._of_statements(),
            **self._of_files(),
            **self._of_ledgers(),
            **self._of_enrolment(),
            "job request": Parser(spoiled_json(json.loads(request_json(request()))), parse_request),
            "recording": Parser(
                st.one_of(*(anything(self._sound(kind)) for kind in ("WAV", "FLAC", "OGG"))),
                self._decode,
            ),
        }

    def _make_statements(self) -> dict[type, Any]:
        coordinator = Coordinator(self._identity)
        order = coordinator.order(self._plan, 1)
        release = coordinator.release(self._plan, b"adapter")
        head = {"tree_head": "0" * 64, "tree_size": 1}
        update = UpdateHeader(self._plan.job, 1, "north", "0" * 64, "0" * 64, 4, **head)
        return {
            RoundPlan: self._plan,
            RoundOrder: open_as(RoundOrder, order.statement, self._trusted),
            UpdateHeader: update,
            Answer: Answer(self._plan.job, 0, "north", "0" * 64, "ok"),
            ReleaseManifest: open_as(ReleaseManifest, release.statement, self._trusted),
        }

    def _of_parcels(self) -> dict[str, Parser]:
        from client_node.errors import RefusalError

        odd = (ValueError, KeyError, TypeError, AttributeError)
        parsers = {
            "site's parcel": Parser(_contents("update"), content_to_parcel, odd),
            "coordinator's parcel": Parser(
                _contents("round").map(_message), message_to_parcel, (RefusalError,)
            ),
        }
        site = FakeSite("north", self._identity.public)
        site.plans[self._plan.job] = self._plan
        numbers = np.ones(self._plan.adapter.size, "<f4").tobytes()
        admission = Admission(self._plan, 1, "north", site.identity.public, seen=lambda _: False)
        sealed = site.sealed(self._plan.job, 1, numbers)
        updates = st.one_of(
            anything(sealed.statement).map(lambda data: Parcel("update", data, numbers)),
            anything(numbers).map(lambda data: site.sealed(self._plan.job, 1, data)),
        )
        packed = {
            f"{encoding} update": Parser(
                anything(encode(numbers, encoding, np.random.default_rng(0))),
                functools.partial(decode, encoding=encoding, size=self._plan.adapter.size),
                (UpdateEncodingError,),
            )
            for encoding in ("bfloat16", "int8")
        }
        update = Parser(updates, lambda parcel: admit(parcel, admission))
        return parsers | packed | {"update": update}

    def _of_statements(self) -> dict[str, Parser]:
        parsers: dict[str, Parser] = {}
        for cls in STATEMENTS:
            sealed = seal(self._statements[cls], self._identity)
            fields = json.loads(json.dumps(dataclasses.asdict(self._statements[cls])))
            kind = payload_type_of(cls)

            def sign(payload: bytes, kind: str = kind) -> bytes:
                return seal_statement(payload, kind, self._identity)

            def read(data: bytes, cls: type = cls) -> object:
                return open_as(cls, data, self._trusted)

            envelopes = st.one_of(anything(sealed), json_bytes(json.loads(sealed)))
            parsers[f"envelope of {cls.__name__}"] = Parser(envelopes, read)
            parsers[f"signed {cls.__name__}"] = Parser(json_bytes(fields).map(sign), read)
        plan = self._plan.to_json()
        texts = st.one_of(anything(plan), json_bytes(json.loads(plan)))
        return parsers | {"stored plan": Parser(texts, RoundPlan.from_json)}

    def _of_files(self) -> dict[str, Parser]:
        model = self._base.model
        adapter = adapter_bytes(self._base, self._plan, self._basis)
        line = {"audio": "a.wav", "text": "words", "subject": "p", "terms": ["w"], "split": "train"}
        (self._folder / "a.wav").write_bytes(self._sound("WAV"))
        return {
            "adapter": Parser(anything(adapter), lambda data: load_adapter(model, data)),
            "basis": Parser(anything(self._basis), basis_from_bytes),
            "manifest of JSON lines": Parser(
                st.one_of(anything(json.dumps(line).encode()), json_bytes(line)),
                self._file("manifest.jsonl", read_manifest),
            ),
            "manifest of CSV": Parser(
                anything(b"audio,text,subject\na.wav,words,p\n"),
                self._file("manifest.csv", read_manifest),
            ),
        }

    def _of_ledgers(self) -> dict[str, Parser]:
        path = self._folder / "ledger.jsonl"
        self._ledger.export(path)
        proofs = [prove_entry(self._ledger, 2), prove_growth(self._ledger, 3)]
        spoilt = [anything(proof) for proof in proofs]
        spoilt += [json_bytes(json.loads(proof)) for proof in proofs]
        return {
            "ledger export": Parser(
                anything(path.read_bytes()),
                self._file("spoilt.jsonl", lambda one: verify_export(one, self._trusted)),
            ),
            "ledger proof": Parser(
                st.one_of(spoilt), lambda data: check_proof(data, self._trusted)
            ),
        }

    def _of_enrolment(self) -> dict[str, Parser]:
        ca_pem = make_authority("coordinator", NOW).certificate_pem.decode()
        fields = {
            "format": INVITE_FORMAT,
            "site": "north",
            "token": "one-time",
            "coordinator_url": "https://localhost:8443",
            "ca_pem": ca_pem,
            "coordinator_public_pem": self._identity.public.public_pem,
            "expires_at": NOW.timestamp() + 60,
        }

        def sign(payload: bytes) -> bytes:
            return seal_statement(payload, INVITE_TYPE, self._identity)

        invite = self._folder / "invite"
        invite.write_bytes(sign(json.dumps(fields).encode()))
        read = read_invite(invite, NOW)
        invites = st.one_of(anything(invite.read_bytes()), json_bytes(fields).map(sign))
        answer = {"approved": True, "coordinator_public_pem": fields["coordinator_public_pem"]}
        answers = st.one_of(anything(json.dumps(answer).encode()), json_bytes(answer))
        return {
            "invite": Parser(invites, self._file("invite", lambda p: read_invite(p, NOW))),
            "enrolment's answer": Parser(answers, lambda data: self._answer(data, read)),
            "enrolment": self._enrolments(),
        }

    def _enrolments(self) -> Parser:
        folder = self._folder / "coordinator"
        folder.mkdir()
        federation = Federation(folder, ("north",))
        site = FakeSite("south", federation.identity.public)
        token = token_of(federation.operations.invite("south", 1e9), federation.identity.public)
        good = dataclasses.asdict(site.enrolment(token))
        good["statement"] = good["statement"].decode()
        # The right one would spend the invite.
        spoilt = spoiled_json(good).filter(lambda f: set(f) == set(good) and f != good)

        def enrol_with(fields: dict[str, Any]) -> object:
            if not all(isinstance(value, str) for value in fields.values()):
                return None  # the listener's own checks: strict strings only
            data = fields["statement"].encode(errors="surrogatepass")
            return federation.operations.enrol(Enrolment(**fields | {"statement": data}))

        return Parser(spoilt, enrol_with)

    def _answer(self, data: bytes, invite: Invite) -> None:
        enrol._check_answer(httpx.Response(200, content=data), invite)

    def _file(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def write_and_read(data: bytes) -> object:
            path = self._folder / name
            path.write_bytes(data)
            return read(path)

        return write_and_read

    def _make_ledger(self) -> Ledger:
        engine = open_engine(f"sqlite:///{self._folder / 'ledger.db'}")
        ledger = Ledger(engine, self._identity, "site/north", TickingClock())
        for number in range(5):
            ledger.append("plan.accepted", {"job": f"{number:x}", "rounds": number})
        return ledger

    def _sound(self, kind: str) -> bytes:
        file = io.BytesIO()
        swell = np.sin(np.arange(4000) / 9) * np.linspace(0, 0.5, 4000)
        soundfile.write(file, swell, 16_000, format=kind)
        return file.getvalue()

    def _decode(self, data: bytes) -> None:
        path = self._folder / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        try:
            with path.open("rb") as file, self._decoder.decode(file):
                pass
        finally:
            path.unlink()
