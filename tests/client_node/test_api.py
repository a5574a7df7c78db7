"""The site's HTTP service from outside: OpenAI's shapes, its limits, and what must not leak."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any, BinaryIO

import httpx
import pytest
from fastapi import APIRouter

from client_node.api import ServiceLimits, make_app
from client_node.model_store import ReleaseError
from client_node.recogniser import Asked, Heard
from client_node.status import BudgetLine, ReceiptLine, ReleaseLine, SiteStatus
from model_core.errors import AudioError
from model_core.transcribe import Segment
from model_core.words import Word

URL = "/v1/audio/transcriptions"
MAX_BYTES = ServiceLimits().upload_bytes
CANARY = "<script>alert('canary')</script>"


class FakeTranscriber:
    """Answers with one transcript, or fails with one error; keeps what it was given."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.release: str | None = "r7"
        self.files: list[BinaryIO] = []
        self.bytes: list[bytes] = []
        self.asked: list[Asked] = []

    def warm_up(self) -> None:
        if self.error is not None:
            raise self.error

    def languages(self) -> frozenset[str]:
        return frozenset({"en"})

    @contextlib.contextmanager
    def listen(self, recording: BinaryIO, asked: Asked) -> Iterator[Heard]:
        self.warm_up()
        self.files.append(recording)
        recording.seek(0)
        self.bytes.append(recording.read())
        self.asked.append(asked)
        words = (Word(0.0, 0.5, "take", 0.9, (5,)), Word(0.5, 1.5, "tablets", 0.5, (6,)))
        segment = Segment(0.0, 1.5, "take tablets", words, -0.25, 0.125, (5, 6))
        yield Heard(self.release, "en", 1.5, iter([segment]))


class Client:
    """Calls the app in this process, from a thread without an event loop."""

    def __init__(self, transcriber: FakeTranscriber, **options: Any) -> None:
        app = make_app(transcriber, site_status, **options)
        self._transport = httpx.ASGITransport(app, raise_app_exceptions=False)

    def request(self, method: str, url: str, **options: Any) -> httpx.Response:
        async def call() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=self._transport, base_url="http://localhost"
            ) as client:
                return await client.request(method, url, **options)

        return asyncio.run(call())

    def get(self, url: str, **options: Any) -> httpx.Response:
        return self.request("GET", url, **options)

    def post(self, url: str, **options: Any) -> httpx.Response:
        return self.request("POST", url, **options)


def site_status() -> SiteStatus:
    return SiteStatus(
        site=CANARY,
        coordinator_url="",
        recordings=1234,
        subjects=56,
        ledger_entries=9,
        ledger_root="ab" * 32,
        budgets=(BudgetLine(CANARY, epsilon_spent=2.0, epsilon_cap=8.0, delta=1e-6),),
        receipts=(ReceiptLine("2026-01-01T00:00:00Z", "update", CANARY, 3, 4096, "cd" * 32),),
        bytes_sent=4096,
        release=ReleaseLine("r7", CANARY, 3, "2026-01-01", float("inf"), 2.5, 1e-6),
    )


@pytest.fixture
def transcriber() -> FakeTranscriber:
    return FakeTranscriber()


@pytest.fixture
def client(transcriber: FakeTranscriber) -> Client:
    return Client(transcriber)


def post(client: Client, data: bytes = b"RIFF", **fields: str) -> Any:
    return client.post(URL, files={"file": ("../../etc/x.wav", data)}, data=fields)


def test_json_is_the_default_and_carries_only_text(client: Client) -> None:
    reply = post(client, model="auricle")
    assert reply.status_code == 200
    assert reply.json() == {"text": "take tablets"}


def test_text_and_verbose_json(client: Client) -> None:
    assert post(client, response_format="text").text == "take tablets\n"
    verbose = post(client, response_format="verbose_json").json()
    assert verbose["duration"] == 1.5
    (segment,) = verbose["segments"]
    assert segment == {
        "id": 0,
        "seek": 0,
        "start": 0.0,
        "end": 1.5,
        "text": "take tablets",
        "tokens": [5, 6],
        "temperature": 0.0,
        "avg_logprob": -0.25,
        "compression_ratio": segment["compression_ratio"],
        "no_speech_prob": 0.125,
    }
    assert verbose["release"] == "r7"
    assert "words" not in verbose


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"response_format": "diarized_json"}, 400, "response_format"),
        ({"model": "gpt-9"}, 404, "model"),
        ({"language": "fr"}, 400, "language"),
        ({"temperature": "1.5"}, 400, "temperature"),
        ({"temperature": "nan"}, 400, "temperature"),
        ({"temperature": "warm"}, 400, "temperature"),
        ({"prompt": "x" * 10_001}, 400, "prompt"),
        ({"stream": "perhaps"}, 400, "stream"),
        ({"timestamp_granularities[]": "letter"}, 400, "timestamp_granularities[]"),
        ({"include[]": "logprobs"}, 400, "include[]"),
    ],
)
def test_what_cannot_be_done_is_refused_in_openais_shape(
    client: Client,
    transcriber: FakeTranscriber,
    fields: dict[str, str],
    status: int,
    param: str,
) -> None:
    reply = post(client, **fields)
    assert reply.status_code == status
    assert set(reply.json()) == {"error"}
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param
    assert transcriber.asked == []


def test_missing_file_and_unknown_route_have_the_same_shape(client: Client) -> None:
    missing = client.post(URL, data={"model": "auricle"})
    assert missing.status_code == 400
    assert missing.json()["error"]["param"] == "file"
    unknown = client.get("/v2/nothing")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["type"] == "invalid_request_error"


def test_upload_is_kept_nowhere_and_its_name_is_never_a_path(
    client: Client, transcriber: FakeTranscriber
) -> None:
    assert post(client, b"some audio").status_code == 200
    assert transcriber.bytes == [b"some audio"]
    (file,) = transcriber.files
    assert file.closed
    assert isinstance(file.name, int)  # it was opened without a name


def test_too_large_a_file_is_refused_before_it_is_decoded(
    client: Client, transcriber: FakeTranscriber
) -> None:
    reply = post(client, bytes(MAX_BYTES + 1))
    assert reply.status_code == 413
    assert reply.json()["error"]["param"] == "file"
    assert post(client, bytes(MAX_BYTES + 200_000)).status_code == 413
    assert transcriber.asked == []


def test_body_without_a_declared_length_is_refused_unread(
    client: Client, transcriber: FakeTranscriber
) -> None:
    read = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield bytes(2**20)

    # As a server passes it on: httpx marks a body of unknown length as chunked.
    headers = {"content-type": "multipart/form-data; boundary=b"}
    reply = client.post(URL, content=endless(), headers=headers)
    assert reply.status_code == 411
    assert reply.json()["error"]["type"] == "invalid_request_error"
    assert read <= 1
    assert transcriber.asked == []


def test_bad_audio_is_the_clients_fault_and_names_no_path() -> None:
    problem = AudioError("/secret/patient-7.wav is empty", remedy="x", code="audio-empty")
    reply = post(Client(FakeTranscriber(problem)))
    assert reply.status_code == 400
    assert reply.json()["error"]["code"] == "audio-empty"
    assert "secret" not in reply.text


def test_release_that_does_not_verify_is_never_served_around() -> None:
    client = Client(FakeTranscriber(ReleaseError("tampered /secret", remedy="x")))
    for reply in (post(client), client.get("/health")):
        assert reply.status_code == 503
        assert reply.json()["error"]["type"] == "server_error"
        assert "secret" not in reply.text


def test_an_unforeseen_failure_tells_nothing() -> None:
    reply = post(Client(FakeTranscriber(RuntimeError("/secret/patient-7.wav"))))
    assert reply.status_code == 500
    assert reply.json()["error"]["code"] == "internal"
    assert "secret" not in reply.text


def test_models_and_health(client: Client, transcriber: FakeTranscriber) -> None:
    ids = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert ids == ["auricle", "r7"]
    assert post(client, model="r7").status_code == 200
    assert client.get("/health").json() == {"status": "ok", "release": "r7"}
    transcriber.release = None
    assert post(client, model="r7").status_code == 404


def test_a_further_router_stands_under_the_same_rules(transcriber: FakeTranscriber) -> None:
    router = APIRouter()

    @router.get("/")
    def page() -> str:
        return "another page"

    @router.get("/fails")
    def fails() -> None:
        raise AudioError("/secret/patient-7.wav", remedy="x", code="audio-unreadable")

    client = Client(transcriber, routers=[router])
    assert client.get("/").json() == "another page"
    assert client.get("/fails").json()["error"]["code"] == "audio-unreadable"
    assert client.get("/fails", headers={"host": "attacker.example"}).status_code == 400
    assert client.get("/v1/models").status_code == 200


def test_another_host_name_is_refused(client: Client) -> None:
    assert client.get("/", headers={"host": "attacker.example"}).status_code == 400


def test_page_escapes_every_value_and_loads_nothing_from_outside(client: Client) -> None:
    reply = client.get("/")
    assert reply.status_code == 200
    assert CANARY not in reply.text
    assert reply.text.count("&lt;script&gt;alert(&#x27;canary&#x27;)") >= 5
    assert not re.search(r"https?://", reply.text)
    assert "unbounded" in reply.text


def test_page_policy_allows_only_its_own_nonce_and_the_nonce_is_fresh(client: Client) -> None:
    first, second = client.get("/"), client.get("/")
    policy = first.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    nonces = re.findall(r"'nonce-([^']+)'", policy)
    assert len(nonces) == 2
    assert re.findall(r'nonce="([^"]+)"', first.text) == nonces
    assert nonces[0] not in second.text


def test_page_can_be_used_without_sight_or_script(client: Client) -> None:
    page = client.get("/").text
    assert '<html lang="en">' in page
    assert '<label for="file">' in page
    assert 'aria-live="polite"' in page
    assert 'action="/v1/audio/transcriptions" method="post"' in page
    assert page.count("<table>") == page.count("<caption>") == 2
    assert "prefers-color-scheme: dark" in page
