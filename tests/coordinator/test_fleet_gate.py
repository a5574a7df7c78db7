"""The gate before Flower's Fleet API, with Flower played by a function."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import Message, PushObjectRequest
from flwr.proto.node_pb2 import Node

from coordinator import fleet_gate
from coordinator.fleet_gate import OBJECT_PATH, PULL_PATH, PUSH_PATH, START_PATH, FleetGate

LONG_S = 60.0  # no test waits as long
NOTHING = PullMessagesResponse().SerializeToString()
FOUND = PullMessagesResponse(messages_list=[Message()]).SerializeToString()


class Flower:
    """Answers each request with the next of `answers`, and keeps the bodies that it was given."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers = list(answers)
        self.pieces: list[dict[str, Any]] = []
        self.asked = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.pieces.append(await receive())
        status, body = self.answers.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})
        self.asked.set()


class Client:
    """One HTTP request; `leave` closes its connection."""

    def __init__(self, body: bytes, pieces: int = 1) -> None:
        step = max(1, -(-len(body) // pieces))
        parts = [body[at : at + step] for at in range(0, len(body), step)] or [b""]
        self._parts = parts
        self._left = asyncio.Event()
        self.got: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            return {"type": "http.request", "body": part, "more_body": bool(self._parts)}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.got.append(message)

    def leave(self) -> None:
        self._left.set()

    @property
    def answer(self) -> tuple[int, bytes]:
        return self.got[0]["status"], b"".join(m.get("body", b"") for m in self.got)


def pull(node: int) -> bytes:
    return PullMessagesRequest(node=Node(node_id=node)).SerializeToString()


def begin(gate: FleetGate, client: Client, path: str = PULL_PATH) -> asyncio.Task[None]:
    scope = {"type": "http", "path": path, "state": {}}
    return asyncio.create_task(gate(scope, client.receive, client.send))


def story(tell: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(tell(), 20.0)

    asyncio.run(bounded())


async def settle() -> None:
    """Let every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_message_that_is_there_is_handed_out_at_once() -> None:
    async def tell() -> None:
        flower, client = Flower((200, FOUND)), Client(pull(7))
        await begin(FleetGate(flower, LONG_S), client)
        assert client.answer == (200, FOUND)

    story(tell)


def test_a_question_waits_until_its_own_node_has_a_message() -> None:
    async def tell() -> None:
        flower, client = Flower((200, NOTHING), (200, FOUND)), Client(pull(7))
        gate = FleetGate(flower, LONG_S)
        task = begin(gate, client)
        await flower.asked.wait()
        gate.wake([8])
        await settle()
        assert client.got == []
        gate.wake([8, 7])
        await task
        assert client.answer == (200, FOUND)
        assert [piece["body"] for piece in flower.pieces] == [pull(7)] * 2

    story(tell)


def test_what_is_queued_while_flower_looks_is_not_missed() -> None:
    async def tell() -> None:
        flower, client = Flower((200, NOTHING), (200, FOUND)), Client(pull(7))
        gate = FleetGate(flower, LONG_S)

        class Slow:
            async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
                gate.wake([7])  # sent after Flower has looked, before its answer is seen
                await flower(scope, receive, send)

        gate._app = Slow()
        await begin(gate, client)
        assert client.answer == (200, FOUND)

    story(tell)


def test_a_question_is_answered_with_nothing_when_its_time_is_over() -> None:
    async def tell() -> None:
        flower, client = Flower((200, NOTHING)), Client(pull(7))
        await begin(FleetGate(flower, 0.01), client)
        assert client.answer == (200, NOTHING)

    story(tell)


def test_a_question_that_flower_refuses_is_not_held() -> None:
    async def tell() -> None:
        flower, client = Flower((401, b"no")), Client(pull(7))
        await begin(FleetGate(flower, LONG_S), client)
        assert client.answer == (401, b"no")

    story(tell)


def test_no_message_is_taken_for_a_client_that_has_gone() -> None:
    async def tell() -> None:
        flower, client = Flower((200, NOTHING)), Client(pull(7))
        gate = FleetGate(flower, LONG_S)
        task = begin(gate, client)
        await flower.asked.wait()
        client.leave()
        gate.wake([7])
        await task
        assert client.got == []
        assert len(flower.pieces) == 1

    story(tell)


def test_a_signature_that_grew_too_old_while_held_ends_no_site() -> None:
    """SuperNode interrupts itself at a 401; its next question is signed anew."""

    async def tell() -> None:
        flower, client = Flower((200, NOTHING), (401, b"too old")), Client(pull(7))
        gate = FleetGate(flower, LONG_S)
        task = begin(gate, client)
        await flower.asked.wait()
        gate.wake([7])
        await task
        assert client.answer == (200, NOTHING)

    story(tell)


def test_closing_answers_what_is_held_and_holds_nothing_more() -> None:
    async def tell() -> None:
        flower = Flower((200, NOTHING), (200, NOTHING), (200, NOTHING))
        gate, client, late = FleetGate(flower, LONG_S), Client(pull(7)), Client(pull(7))
        task = begin(gate, client)
        await flower.asked.wait()
        gate.close()
        await task
        await begin(gate, late)
        assert client.answer == late.answer == (200, NOTHING)
        gate.wait_for_news(LONG_S)  # the job loop is woken too

    story(tell)


def test_bytes_that_are_no_question_reach_flower_and_are_held_for_nobody() -> None:
    async def tell() -> None:
        flower, client = Flower((400, b"what")), Client(b"\xff\xff")
        await begin(FleetGate(flower, LONG_S), client)
        assert client.answer == (400, b"what")

    story(tell)


def test_a_body_in_many_pieces_reaches_flower_in_one() -> None:
    async def tell() -> None:
        flower, client = Flower((200, b"")), Client(bytes(1000), pieces=13)
        await begin(FleetGate(flower, LONG_S), client, "/v1/fleet/get-run")
        expected = {"type": "http.request", "body": bytes(1000), "more_body": False}
        assert flower.pieces == [expected]

    story(tell)


def test_half_a_body_reaches_nobody() -> None:
    async def tell() -> None:
        flower, client = Flower(), Client(bytes(10), pieces=2)
        client._parts.pop()
        client._parts.append(b"")
        client.leave()
        scope = {"type": "http", "path": PUSH_PATH, "state": {}}

        async def cut() -> dict[str, Any]:
            message = await client.receive()
            return message | {"more_body": True}

        await FleetGate(flower, LONG_S)(scope, cut, client.send)
        assert flower.pieces == []
        assert client.got == []

    story(tell)


def pushed(session: str, *objects: str) -> bytes:
    response = PushMessagesResponse(session_id=session, objects_to_push=objects)
    return bytes(response.SerializeToString())


def part(session: str, object_id: str) -> bytes:
    request = PushObjectRequest(session_id=session, object_id=object_id, object_content=b"x")
    return bytes(request.SerializeToString())


async def told(gate: FleetGate, flower: Flower, *pushes: tuple[str, bytes, int, bytes]) -> bool:
    """Whether there is news after these (path, body, status, answer)."""
    gate._news.clear()
    for path, body, status, answer in pushes:
        flower.answers.append((status, answer))
        await begin(gate, Client(body), path)
    return gate._news.is_set()


def test_the_last_part_of_an_answer_is_news_and_no_other() -> None:
    async def tell() -> None:
        flower = Flower()
        gate = FleetGate(flower, LONG_S)
        assert not await told(gate, flower, (PUSH_PATH, b"", 200, pushed("s", "a", "b")))
        assert not await told(gate, flower, (OBJECT_PATH, part("s", "a"), 200, b""))
        assert not await told(gate, flower, (OBJECT_PATH, part("s", "a"), 200, b""))
        assert not await told(gate, flower, (OBJECT_PATH, part("s", "b"), 403, b"no"))
        assert await told(gate, flower, (OBJECT_PATH, part("s", "b"), 200, b""))
        # An answer whose every part Flower had already is whole at once.
        assert await told(gate, flower, (PUSH_PATH, b"", 200, pushed("t")))

    story(tell)


def test_uploads_that_never_end_take_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_gate, "MAX_UPLOADS", 3)

    async def tell() -> None:
        flower = Flower()
        gate = FleetGate(flower, LONG_S)
        for number in range(10):
            await told(gate, flower, (PUSH_PATH, b"", 200, pushed(str(number), "a")))
        assert len(gate._uploads) == 3
        assert await told(gate, flower, (OBJECT_PATH, part("9", "a"), 200, b""))

    story(tell)


def announced(*questions: str) -> bytes:
    """A site's announcement of its answers to `questions`."""
    request = PushMessagesRequest()
    for question in questions:
        request.messages_list.add().metadata.reply_to_message_id = question
    return bytes(request.SerializeToString())


def test_an_answer_is_not_to_be_fetched_before_its_last_part() -> None:
    async def tell() -> None:
        flower = Flower()
        gate = FleetGate(flower, LONG_S)
        await told(gate, flower, (PUSH_PATH, announced("q"), 200, pushed("s", "a")))
        assert gate.unfinished("q")
        await told(gate, flower, (OBJECT_PATH, part("s", "a"), 200, b""))
        assert not gate.unfinished("q")
        await told(gate, flower, (PUSH_PATH, announced("r"), 401, b"no"))
        assert not gate.unfinished("r")
        await told(gate, flower, (PUSH_PATH, b"\xff\xff", 400, b"no"))  # no protobuf

    story(tell)


def test_a_nodes_start_is_news_until_it_is_asked_something() -> None:
    async def tell() -> None:
        flower = Flower()
        gate = FleetGate(flower, LONG_S)
        answer = ActivateNodeResponse(node_id=7).SerializeToString()
        assert await told(gate, flower, (START_PATH, b"", 200, answer))
        assert gate.take_started() == {7}
        await told(gate, flower, (START_PATH, b"", 200, answer))
        gate.wake([7])
        assert gate.take_started() == frozenset()

    story(tell)
