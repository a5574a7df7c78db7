"""The gate in front of Flower's Fleet API: a site's question waits here until there is an answer.

Flower's SuperNode asks for messages again and again. Here its question is held open: one that finds
nothing is put to Flower once more when a message was queued for that node, or answered "nothing"
after `hold_s`. So an order leaves at once, and an idle site asks six times a minute. The other way
round the job loop is told when a site has sent the last part of an answer.

Only a question that Flower has authenticated is held. Bodies are read whole before Flower sees
them, within the listener's limit: its layers of middleware would hand on each piece for itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.message_pb2 import PushObjectRequest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from coordinator.uploads import Uploads

PULL_PATH = "/v1/fleet/pull-messages"
PUSH_PATH = "/v1/fleet/push-messages"
OBJECT_PATH = "/v1/fleet/push-object"
START_PATH = "/v1/fleet/activate-node"
MAX_UPLOADS = 4096


class FleetGate:
    """ASGI app in front of `app`. All but the calling of it may be done from any thread."""

    def __init__(self, app: ASGIApp, hold_s: float) -> None:
        """`hold_s` is the longest that a question is held; SuperNode gives up after 30 s."""
        self._app = app
        self._hold_s = hold_s
        self._lock = threading.Lock()
        self._held: dict[asyncio.Event, tuple[int, asyncio.AbstractEventLoop]] = {}
        self._open = True
        self._news = threading.Event()
        self._uploads = Uploads(MAX_UPLOADS)

    def wake(self, nodes: Iterable[int]) -> None:
        """Ask Flower again for what is held of these nodes, just asked something."""
        wanted = set(nodes)
        self._uploads.forget_started(wanted)
        with self._lock:
            due = [(event, loop) for event, (node, loop) in self._held.items() if node in wanted]
        for event, loop in due:
            loop.call_soon_threadsafe(event.set)

    def wait_for_news(self, timeout_s: float) -> None:
        """Return once a site has sent a whole answer since the last call, or after `timeout_s`."""
        self._news.wait(timeout_s)
        self._news.clear()

    def close(self) -> None:
        """Answer what is held, and hold nothing more."""
        with self._lock:
            self._open = False
            nodes = [node for node, _ in self._held.values()]
        self.wake(nodes)
        self._news.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        body = await _read(receive)
        if body is None:
            return
        if scope["path"] == PULL_PATH:
            await self._pull(scope, body, receive, send)
            return
        if scope["path"] not in (PUSH_PATH, OBJECT_PATH, START_PATH):
            await self._app(scope, _replay(body, receive), send)
            return
        questions = _answered(body) if scope["path"] == PUSH_PATH else []
        self._uploads.announce(questions)  # before Flower could hand out what is not whole
        answer = await self._ask(scope, body)
        if answer.status == 200:
            self._note(scope["path"], body, answer, questions)
        else:
            self._uploads.refuse(questions)
        await answer.pass_on(send)

    def unfinished(self, question: str) -> bool:
        """Whether a site's answer to the message `question` has come in part only."""
        return self._uploads.unfinished(question)

    def take_started(self) -> frozenset[int]:
        """Nodes whose process has started since the last call."""
        return self._uploads.take_started()

    def _note(self, path: str, body: bytes, answer: _Answer, questions: list[str]) -> None:
        """Tell the job loop where this was the last part of an upload, or a node's start."""
        if path == PUSH_PATH:
            begun = PushMessagesResponse.FromString(answer.body)
            news = self._uploads.begin(begun.session_id, questions, begun.objects_to_push)
        elif path == OBJECT_PATH:
            part = PushObjectRequest.FromString(body)
            news = self._uploads.take(part.session_id, part.object_id)
        else:
            self._uploads.started(ActivateNodeResponse.FromString(answer.body).node_id)
            news = True
        if news:
            self._news.set()

    async def _pull(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        queued = asyncio.Event()
        with self._lock:  # before Flower is asked: what is queued from now on wakes us
            self._held[queued] = (_node(body), asyncio.get_running_loop())
        try:
            first = await self._ask(scope, body)
            if first.found or not self._open:
                await first.pass_on(send)
                return
            gone = await _wait(queued, receive, self._hold_s)
            # To a client that has gone Flower would count a message as delivered.
            if not gone:
                again = await self._ask(scope, body) if queued.is_set() else first
                # A question that has become too old while it was held was good when it came.
                await (again if again.status == 200 else first).pass_on(send)
        finally:
            with self._lock:
                del self._held[queued]

    async def _ask(self, scope: Scope, body: bytes) -> _Answer:
        answer = _Answer()
        asked: dict[str, Any] = {**scope, "state": dict(scope.get("state", {}))}
        await self._app(asked, _replay(body, _never), answer.take)
        return answer


class _Answer:
    """What Flower answered, kept until it is passed on."""

    def __init__(self) -> None:
        self._messages: list[Message] = []

    async def take(self, message: Message) -> None:
        self._messages.append(message)

    @property
    def status(self) -> int:
        return int(self._messages[0]["status"])

    @property
    def found(self) -> bool:
        """Whether it is anything but "no message", which protobuf writes as no bytes at all."""
        return self.status != 200 or self.body != b""

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self._messages)

    async def pass_on(self, send: Send) -> None:
        for message in self._messages:
            await send(message)


def _answered(body: bytes) -> list[str]:
    """The messages that the pushed ones answer."""
    try:
        pushed = PushMessagesRequest.FromString(body)
    except Exception:  # noqa: BLE001 - anybody's bytes: Flower refuses them, and nothing is noted
        return []
    return [str(message.metadata.reply_to_message_id) for message in pushed.messages_list]


def _node(body: bytes) -> int:
    try:
        return int(PullMessagesRequest.FromString(body).node.node_id)
    except Exception:  # noqa: BLE001 - anybody's bytes: Flower refuses them, and nothing is held
        return 0


async def _read(receive: Receive) -> bytes | None:
    """The request's whole body; None where the client has gone."""
    pieces = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


def _replay(body: bytes, after: Receive) -> Receive:
    """A receive that gives `body` in one piece, then whatever `after` gives."""
    given = False

    async def receive() -> Message:
        nonlocal given
        if given:
            return await after()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError("nothing sets the event")


async def _wait(queued: asyncio.Event, receive: Receive, hold_s: float) -> bool:
    """Wait until `queued` is set, the client has gone, or `hold_s` is over; whether it has gone."""
    waiting = {asyncio.ensure_future(queued.wait()), asyncio.ensure_future(receive())}
    done, pending = await asyncio.wait(waiting, timeout=hold_s, return_when=asyncio.FIRST_COMPLETED)
    for task in pending:
        task.cancel()
    return any(isinstance(task.result(), dict) for task in done)
