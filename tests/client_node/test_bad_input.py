"""The whole service on a socket meets every bad file and every bad client; health stays green."""

from __future__ import annotations

import re
import resource
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
from fastapi import FastAPI, Request

from client_node.api import ServiceLimits
from client_node.body_limit import BodyLimit
from client_node.decoding.job import DecodeLimits
from client_node.http import render
from client_node.http.server import PatientProtocol
from model_core.base import SpeechBase
from model_core.transcribe import Segment
from model_core.words import Word
from tests.client_node.http_harness import serving, site_service, speechlike, wav
from tests.client_node.sounds import HEARD, RAW, REFUSED, ten_hours

URL = "/v1/audio/transcriptions"
HOSTILE = "<script>alert(1)</script> =HYPERLINK(1) \x1b[2J\x07 --> \u202egnol\r\n\x00"
IDLE = 1000


@pytest.fixture(scope="module")
def client(nano: SpeechBase) -> Iterator[httpx.Client]:
    limits = ServiceLimits(upload_bytes=40 * 2**20)
    with (
        site_service(nano, DecodeLimits(duration_s=600.0), limits=limits) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        yield client


def post(client: httpx.Client, data: bytes, name: str = "a.wav") -> httpx.Response:
    return client.post(URL, files={"file": (name, data)})


def is_healthy(client: httpx.Client) -> bool:
    return client.get("/health").json()["status"] == "ok"


@pytest.mark.parametrize("name", REFUSED)
def test_bad_audio_is_answered_400(client: httpx.Client, name: str) -> None:
    answer = post(client, REFUSED[name]())
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["code"] in {"audio-empty", "audio-unreadable"}
    assert error["param"] == "file"
    assert not re.search(r"/|Error|python|av\.", error["message"])
    assert is_healthy(client)


def test_ten_hours_are_answered_400(client: httpx.Client) -> None:
    answer = post(client, ten_hours(), "long.mp3")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "audio-too-long")
    assert is_healthy(client)


def test_good_audio_in_odd_clothes_is_heard(client: httpx.Client) -> None:
    for make in HEARD.values():
        assert post(client, make(), "what.ever").status_code == 200
    for name, (_, make) in RAW.items():
        assert post(client, make(), name).status_code == 200


@pytest.mark.slow
def test_memory_is_bounded_over_many_bad_and_good_files(client: httpx.Client) -> None:
    files = [make() for make in (*REFUSED.values(), *HEARD.values())]
    for data in files:
        post(client, data)
    process = psutil.Process()
    before = process.memory_info().rss
    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda data: post(client, data).status_code, files * 3))
    assert set(statuses) == {200, 400}
    assert process.memory_info().rss - before < 100 * 2**20


def test_a_body_that_stops_coming_is_answered_408() -> None:
    app = FastAPI()

    @app.post(URL)
    async def read(request: Request) -> int:
        return len(await request.body())

    app.add_middleware(BodyLimit, max_bytes=2**20, idle_s=0.2)
    with serving(app) as url, socket.create_connection(_address(url)) as slow:
        slow.sendall(_head(URL, length=1000) + b"x" * 10)
        answer = b""
        while b"request_timeout" not in answer and (piece := slow.recv(65_536)):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"request_timeout" in answer
        with httpx.Client(base_url=url) as quick:
            assert quick.post(URL, content=b"x" * 1000).text == "1000"


def test_a_thousand_idle_connections_leave_health_green_and_are_closed(
    nano: SpeechBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * IDLE:
        pytest.skip(f"IDLE CONNECTIONS NOT TESTED: at most {hard} files may be open here")
    monkeypatch.setattr(PatientProtocol, "idle_s", 1.0)
    idle: list[socket.socket] = []
    with site_service(nano) as url, httpx.Client(base_url=url, timeout=60) as client:
        try:
            for number in range(IDLE):
                idle.append(socket.create_connection(_address(url)))
                if number % 2:
                    idle[-1].sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            assert is_healthy(client)
            assert post(client, wav(speechlike(0.5))).status_code == 200
            for connection in idle:
                connection.settimeout(30)
                assert connection.recv(1) == b""  # closed by the service
            assert is_healthy(client)
        finally:
            for connection in idle:
                connection.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_uploads_that_do_not_arrive_take_only_their_own_places(nano: SpeechBase) -> None:
    with (
        site_service(nano, limits=ServiceLimits(recordings=4)) as url,
        httpx.Client(base_url=url, timeout=60) as client,
    ):
        held = [socket.create_connection(_address(url)) for _ in range(5)]
        for connection in held:
            connection.sendall(_head(URL, length=10_000))
        assert b"503" in held[-1].recv(64)
        assert is_healthy(client)
        assert post(client, wav(speechlike(0.5))).status_code == 503
        for connection in held:
            connection.close()
        patient = httpx.Client(base_url=url, timeout=60)
        with patient:
            statuses = (post(patient, wav(speechlike(0.5))).status_code for _ in range(200))
            assert 200 in statuses


def test_hostile_text_is_inert_in_every_format() -> None:
    words = tuple(Word(i / 10, (i + 1) / 10, w, 0.5) for i, w in enumerate(HOSTILE.split(" ")))
    segment = Segment(0.0, 1.0, HOSTILE, words)
    text = render.inert(HOSTILE)
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u202e]", text)
    for subtitles in (render.srt([segment]), render.vtt([segment])):
        assert "<script" not in subtitles
        assert subtitles.count("-->") == 1
        assert "\x1b" not in subtitles
    verbose = render.verbose(
        [segment],
        task="transcribe",
        language="en",
        duration_s=1.0,
        temperature=0.0,
        release=None,
        granularities=("word", "segment"),
    )
    told = [verbose["text"], *(s["text"] for s in verbose["segments"])]
    told += [w["word"] for w in verbose["words"]]
    assert all(render.inert(each) == each for each in told)


def test_a_transcript_is_never_a_page(client: httpx.Client) -> None:
    for form in ("text", "srt", "vtt"):
        answer = client.post(
            URL,
            files={"file": ("a.wav", wav(speechlike(1.0)))},
            data={"response_format": form},
            headers={"accept": "text/html"},
        )
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert answer.headers["x-content-type-options"] == "nosniff"


def _address(url: str) -> tuple[str, int]:
    parsed = httpx.URL(url)
    assert parsed.port is not None
    return parsed.host, parsed.port


def _head(path: str, *, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\n\r\n"
    ).encode()
