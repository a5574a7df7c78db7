"""The WebSocket from outside: a real server, a real client, and what it refuses."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import connect

from client_node.live.service import LiveLimits, LiveService
from client_node.live.websocket import PATH, live_router
from tests.client_node.live.live_support import LOUD, CountingEar, loudness_network, sound


@contextlib.contextmanager
def serving(limits=None, ears=None):
    service = LiveService(loudness_network, ears or CountingEar(), time.monotonic, limits=limits)
    app = FastAPI()
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1"])
    app.include_router(live_router(service))
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="error", ws="websockets-sansio", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listening.getsockname()[1]}{PATH}", service
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def url():
    with serving() as (address, _):
        yield address


def start(peer, **fields):
    peer.send(json.dumps({"type": "start", **fields}))
    return json.loads(peer.recv(10))


def read_all(peer):
    messages = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            messages.append(json.loads(peer.recv(10)))
    return messages


def pcm(*stretches):
    return (sound(*stretches) * 32767).astype("<i2").tobytes()


def test_speech_becomes_partials_and_a_final_and_then_it_is_done(url):
    with connect(url) as peer:
        assert start(peer) == {"type": "ready"}
        data = pcm((0.5, 0), (2.0, LOUD), (0.6, 0))
        for at in range(0, len(data), 3200):
            peer.send(data[at : at + 3200])
        peer.send('{"type":"finish"}')
        messages = read_all(peer)
    kinds = [m["type"] for m in messages]
    assert kinds[0] == "speech_started"
    assert "partial" in kinds
    assert kinds[-2:] == ["final", "done"]
    final = messages[-2]
    assert final["text"] == "word0 word1 word2 word3"
    assert final["release"] == "r7"
    assert final["words"][0] == {
        "word": "word0",
        "start_s": final["start_s"],
        "end_s": pytest.approx(final["start_s"] + 0.5),
        "confidence": 0.9,
    }


def test_eight_kilohertz_floats_are_heard_like_the_rest(url):
    samples_N = np.repeat(sound((0.3, 0), (1.0, LOUD), (0.6, 0)), 1)[::2]
    with connect(url) as peer:
        start(peer, encoding="f32le", rate_hz=8000)
        peer.send(samples_N.astype("<f4").tobytes())
        peer.send('{"type":"finish"}')
        finals = [m for m in read_all(peer) if m["type"] == "final"]
    assert [f["text"] for f in finals] == ["word0 word1"]


@pytest.mark.parametrize(
    ("opening", "code"),
    [
        ("", "stream-malformed"),
        ("null", "stream-malformed"),
        ('{"type":"begin"}', "stream-malformed"),
        ('{"type":"start","rate_hz":"16000"}', "stream-malformed"),
        ('{"type":"start","speed":2}', "stream-malformed"),
        ('{"type":"start","rate_hz":1}', "stream-rate"),
        ('{"type":"start","encoding":"../../etc"}', "stream-encoding"),
        ('{"type":"start","terms":[' + ",".join(['"a"'] * 201) + "]}", "stream-terms"),
        (b"\0\0", "stream-malformed"),
    ],
)
def test_an_opening_that_is_none_is_refused_with_a_code(url, opening, code):
    with connect(url) as peer:
        peer.send(opening)
        (message,) = read_all(peer)
    assert message["type"] == "error"
    assert message["error"]["code"] == code
    assert set(message["error"]) == {"message", "type", "param", "code"}


def test_half_a_sample_and_a_strange_message_are_refused(url):
    for last, code in ((b"\0", "stream-samples"), ("stop", "stream-malformed")):
        with connect(url) as peer:
            start(peer)
            peer.send(last)
            if isinstance(last, bytes):
                peer.send('{"type":"finish"}')
            assert read_all(peer)[-1]["error"]["code"] == code


def test_pages_of_others_and_foreign_hosts_are_refused(url):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        with pytest.raises(InvalidStatus) as raised, connect(url, origin=origin):
            pass
        assert raised.value.response.status_code == 403
    with pytest.raises(InvalidHandshake), connect(url.replace("127.0.0.1", "localhost")):
        pass
    own = url.replace("ws://", "http://").removesuffix(PATH)
    with connect(url, origin=own) as peer:
        assert start(peer) == {"type": "ready"}


def test_a_client_that_leaves_or_falls_silent_is_forgotten():
    with serving(limits=LiveLimits(idle_s=1.0)) as (address, service):
        with connect(address) as peer:
            start(peer)
            assert service.streams == 1
            assert read_all(peer)[-1]["error"]["code"] == "stream-idle"
        with connect(address) as peer:
            start(peer)
            peer.send(pcm((1.0, LOUD)))
        with connect(address) as silent:
            assert read_all(silent)[-1]["error"]["code"] == "stream-idle"
        deadline = time.monotonic() + 10
        while service.streams and time.monotonic() < deadline:
            time.sleep(0.01)
        assert service.streams == 0


def test_a_failure_tells_nothing_of_itself():
    class Broken(CountingEar):
        def final(self, samples_N):
            raise RuntimeError("/home/secret and the transcript")

    with serving(ears=Broken()) as (address, _), connect(address) as peer:
        start(peer)
        peer.send(pcm((1.0, LOUD), (1.0, 0)))
        peer.send('{"type":"finish"}')
        message = read_all(peer)[-1]
        assert message["error"]["code"] == "internal"
        assert "secret" not in json.dumps(message)
