"""Many streams at once: limits, idleness, lag, and failures that stay with their stream."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from client_node.live.errors import LiveError
from client_node.live.events import Final
from client_node.live.service import LiveLimits, LiveService, Opening
from tests.client_node.live.live_support import LOUD, CountingEar, loudness_network, sound


class Clock:
    def __init__(self):
        self.now_s = 100.0

    def __call__(self):
        return self.now_s


def pcm(samples_N):
    return (samples_N * 32767).astype("<i2").tobytes()


def with_service(scenario, ears=None, limits=None, clock=None):
    async def run():
        service = LiveService(
            loudness_network, ears or CountingEar(), clock or Clock(), limits=limits, workers=1
        )
        try:
            async with asyncio.timeout(60):
                return await scenario(service)
        finally:
            service.close()

    return asyncio.run(run())


async def collect(stream):
    return [event async for event in stream.events()]


async def speak(stream, samples_N, piece=8000):
    data = pcm(samples_N)
    for start in range(0, len(data), piece):
        await stream.push(data[start : start + piece])
    await stream.finish()


def code_of(error):
    return error.value.code


def test_a_stream_hears_what_is_said():
    ear = CountingEar()

    async def scenario(service):
        stream = await service.open(Opening(terms=("metformin",)))
        listening = asyncio.create_task(collect(stream))
        await speak(stream, sound((0.4, 0), (1.5, LOUD), (0.6, 0), (1.0, LOUD)))
        events = await listening
        stream.close()
        return [e.text for e in events if isinstance(e, Final)], service.streams

    texts, left = with_service(scenario, ear)
    assert texts == ["word0 word1 word2", "word0 word1"]
    assert ear.terms == ("metformin",)
    assert left == 0


def test_streams_do_not_hear_each_other():
    async def scenario(service):
        streams = [await service.open(Opening()) for _ in range(6)]
        listening = [asyncio.create_task(collect(s)) for s in streams]
        speech = [sound((0.3, 0), (0.5 * n + 0.5, LOUD), (0.5, 0)) for n in range(6)]
        await asyncio.gather(*map(speak, streams, speech))
        heard = await asyncio.gather(*listening)
        return [[e.text for e in events if isinstance(e, Final)] for events in heard]

    words = " ".join(f"word{n}" for n in range(6)).split()
    assert with_service(scenario) == [[" ".join(words[: n + 1])] for n in range(6)]


def test_an_idle_stream_ends_and_a_sending_one_does_not():
    clock = Clock()

    async def scenario(service):
        idle, busy = await service.open(Opening()), await service.open(Opening())
        for _ in range(7):
            clock.now_s += 10
            await busy.push(pcm(np.zeros(1600, np.float32)))
            service.expire()
        with pytest.raises(LiveError) as raised:
            await collect(idle)
        with pytest.raises(LiveError):
            await idle.push(b"\0\0")
        return code_of(raised), service.streams

    assert with_service(scenario, clock=clock) == ("stream-idle", 1)


def test_a_listener_that_takes_nothing_stops_the_audio_and_then_the_stream():
    """Memory stays bounded: `push` waits, so the transport's own window fills up."""
    clock = Clock()

    async def scenario(service):
        stream = await service.open(Opening())
        speech = sound(*[pair for _ in range(60) for pair in ((0.6, LOUD), (0.4, 0))])
        speaking = asyncio.create_task(speak(stream, speech))
        while stream._events.qsize() < 64:
            await asyncio.sleep(0)
        for _ in range(100):
            await asyncio.sleep(0)
        blocked = not speaking.done()
        clock.now_s += 61
        service.expire()
        with pytest.raises(LiveError) as raised:
            await speaking
        return blocked, code_of(raised), stream._events.qsize()

    assert with_service(scenario, clock=clock) == (True, "stream-idle", 64)


def test_limits_of_streams_messages_and_length():
    limits = LiveLimits(streams=2, message_bytes=4000, stream_s=1.0)

    async def scenario(service):
        first, second = await service.open(Opening()), await service.open(Opening())
        codes = []
        with pytest.raises(LiveError) as raised:
            await service.open(Opening())
        codes.append(code_of(raised))
        with pytest.raises(LiveError) as raised:
            await first.push(b"\0" * 4001)
        codes.append(code_of(raised))
        with pytest.raises(LiveError) as raised:
            await speak(second, sound((1.1, 0)), 4000)
        codes.append(code_of(raised))
        first.close()
        await service.open(Opening())
        return codes

    assert with_service(scenario, limits=limits) == [
        "stream-busy",
        "stream-chunk",
        "stream-too-long",
    ]


@pytest.mark.parametrize(
    ("opening", "code"),
    [
        (Opening(encoding="mp3"), "stream-encoding"),
        (Opening(rate_hz=4000), "stream-rate"),
        (Opening(terms=("a",) * 201), "stream-terms"),
        (Opening(terms=("a" * 101,)), "stream-terms"),
    ],
)
def test_an_opening_that_cannot_be_is_refused(opening, code):
    async def scenario(service):
        with pytest.raises(LiveError) as raised:
            await service.open(opening)
        return code_of(raised), service.streams

    assert with_service(scenario) == (code, 0)


def test_an_ear_that_fails_ends_its_stream_only():
    class FailingEar(CountingEar):
        def __init__(self):
            super().__init__()
            self.opened = 0

        def listen(self, terms):
            self.opened += 1
            return self if self.opened == 1 else CountingEar()

        def final(self, samples_N):
            raise RuntimeError("broken")

    async def scenario(service):
        broken, whole = await service.open(Opening()), await service.open(Opening())
        listening = asyncio.create_task(collect(whole))
        with pytest.raises(RuntimeError, match="broken"):
            await asyncio.gather(
                speak(broken, sound((1.0, LOUD), (1.0, 0), (1.0, LOUD))), collect(broken)
            )
        await speak(whole, sound((1.0, LOUD), (1.0, 0)))
        return [e.text for e in await listening if isinstance(e, Final)]

    assert with_service(scenario, FailingEar()) == ["word0 word1"]


def test_audio_waits_for_a_model_that_is_behind():
    """Three utterances wait at most; the fourth is not taken before one of them is done."""
    gate = threading.Event()

    class SlowEar(CountingEar):
        def final(self, samples_N):
            gate.wait(30)
            return super().final(samples_N)

    async def scenario(service):
        stream = await service.open(Opening())
        listening = asyncio.create_task(collect(stream))
        speech = sound(*[pair for _ in range(8) for pair in ((0.6, LOUD), (0.5, 0))])
        speaking = asyncio.create_task(speak(stream, speech, 35_200))
        while stream._session.heard_s < 2.0:
            await asyncio.sleep(0.001)
        taken_s = stream._session.heard_s
        gate.set()
        await speaking
        return taken_s, len([e for e in await listening if isinstance(e, Final)])

    taken_s, finals = with_service(scenario, SlowEar())
    assert taken_s < 5
    assert finals == 8


def test_a_thousand_idle_streams_cost_little():
    import tracemalloc

    async def scenario(service):
        tracemalloc.start()
        streams = [await service.open(Opening()) for _ in range(1000)]
        for stream in streams:
            await stream.push(b"\0" * 3200)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert service.streams == 1000
        return used

    assert with_service(scenario) < 40 * 2**20
