"""The Flower file against SuperNode's real Runtime API: what arrives, and what may leave."""

from __future__ import annotations

import hashlib
import secrets
import threading
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import uvicorn
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.main import create_app
from flwr.supernode.nodestate import NodeStateFactory

from client_node import flower_worker
from client_node.errors import REFUSAL_CODES, RefusalError, refusal_code
from client_node.flower_worker import FlowerWorker, message_to_parcel, parcel_to_content
from client_node.supernode import LOOPBACK, free_port
from privacy.errors import AuricleError, BudgetError
from privacy.parcel import Parcel
from tests.client_node.harness import Site

WAIT_S = 20.0
RUN_ID, NODE_ID = 7, 42
CANARY = "patient-0451 /ward/3.wav take two tablets"


class Node:
    """SuperNode's Runtime API in this process, with its state at hand; no SuperLink behind it."""

    def __init__(self, secret: bytes) -> None:
        objects = ObjectStoreFactory()
        states = NodeStateFactory(objectstore_factory=objects)
        self.state, self.objects = states.state(), objects.store()
        self.state.set_node_id(NODE_ID)
        self.port = free_port()
        app = create_app(state_factory=states, superexec_auth_secret=secret)
        config = uvicorn.Config(app, host=LOOPBACK, port=self.port, log_level="error", ws="none")
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()

    def deliver(self, content: RecordDict, message_type: str = "query", extra: bytes = b"") -> str:
        """Put a message into the state as the SuperNode does when it has pulled one."""
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1
        message = Message(content, NODE_ID, message_type)
        bundle = b"a bundle that is never unpacked"
        name = hashlib.sha256(bundle).hexdigest()
        run = Run.create_empty(RUN_ID)
        run.fab_hash = name
        self.state.store_run(run)
        self.state.store_fab(Fab(name, bundle, {}))
        self.state.fab_store[name] = Fab(name, bundle + extra, {})
        context = Context(RUN_ID, NODE_ID, {}, RecordDict(), {}, series_id=run.series_id)
        self.state.set_run_series_context(run.series_id, context)
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            tree = get_object_tree(message)
            self.objects.preregister(RUN_ID, tree)
            for object_id, item in get_all_nested_objects(message).items():
                self.objects.put(object_id, item.deflate())
            self.state.store_message(remove_content_from_message(message))
        self.state.create_task(TaskType.CLIENT_APP, RUN_ID, fab_hash=name)
        return str(message.metadata.message_id)

    def reply(self, message_id: str) -> Message:
        """The worker's answer, once it is whole."""
        deadline = threading.Event()
        timer = threading.Timer(WAIT_S, deadline.set)
        timer.start()
        try:
            while not deadline.wait(0.02):
                for message in self.state.get_messages_legacy(is_reply=True):
                    if message.metadata.reply_to_message_id == message_id:
                        return self._inflate(message)
            raise AssertionError("no reply came")
        finally:
            timer.cancel()

    def _inflate(self, message: Message) -> Message:
        tree = self.objects.get_object_tree(message.metadata.message_id)
        ids = [node.object_id for node in iterate_object_tree(tree)]
        contents: dict[str, bytes] = {}
        while len(contents) < len(ids):
            contents = {i: data for i in ids if (data := self.objects.get(i))}
        whole = inflate_object_from_contents(tree.object_id, contents)
        assert isinstance(whole, Message)
        return whole

    def close(self) -> None:
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture
def node() -> Iterator[tuple[Node, bytes]]:
    secret = secrets.token_hex(32).encode()
    made = Node(secret)
    yield made, secret
    made.close()


@pytest.fixture
def serving(
    node: tuple[Node, bytes], site: Site
) -> Iterator[Callable[[Callable[[Parcel], Parcel]], Node]]:
    """Start a worker with a handler; everything stops at the end."""
    stop = threading.Event()
    threads = []

    def start(handle: Callable[[Parcel], Parcel]) -> Node:
        supernode, secret = node

        def refuse(code: str) -> Parcel:
            return Parcel("refused", code.encode())

        worker = FlowerWorker(f"{LOOPBACK}:{supernode.port}", secret, handle, refuse, site.log)
        thread = threading.Thread(target=worker.run, args=(stop,))
        thread.start()
        threads.append(thread)
        return supernode

    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_a_parcel_goes_through_and_its_answer_comes_back(
    serving: Callable[[Callable[[Parcel], Parcel]], Node],
) -> None:
    seen: list[Parcel] = []

    def handle(parcel: Parcel) -> Parcel:
        seen.append(parcel)
        return Parcel("update", b"signed", bytes(range(256)) * 4)

    node = serving(handle)
    asked = Parcel("round", b"order", b"\x00\x01\xff" * 1000)
    reply = node.reply(node.deliver(parcel_to_content(asked)))
    assert seen == [asked]
    assert not reply.has_error()
    assert reply.content == parcel_to_content(Parcel("update", b"signed", bytes(range(256)) * 4))
    second = node.reply(node.deliver(parcel_to_content(Parcel("prepare", b"plan"))))
    assert seen[1] == Parcel("prepare", b"plan")
    assert not second.has_error()


def test_an_exception_leaves_as_a_code_and_never_as_text(
    serving: Callable[[Callable[[Parcel], Parcel]], Node], site: Site
) -> None:
    def handle(_: Parcel) -> Parcel:
        raise ValueError(CANARY)

    node = serving(handle)
    reply = node.reply(node.deliver(parcel_to_content(Parcel("round", b"order"))))
    assert reply.has_error()
    assert reply.error.reason == "internal"
    log = (site.home.logs / "site.log").read_text()
    assert "test_flower_worker:" in log
    assert "0451" not in log


def test_what_is_not_a_parcel_is_refused_without_reaching_the_agent(
    serving: Callable[[Callable[[Parcel], Parcel]], Node],
) -> None:
    seen: list[Parcel] = []

    def handle(parcel: Parcel) -> Parcel:
        seen.append(parcel)
        return parcel

    node = serving(handle)
    reply = node.reply(node.deliver(RecordDict({"other": ConfigRecord({"x": 1})})))
    assert reply.content["parcel"]["statement"] == b"parcel-invalid"
    reply = node.reply(node.deliver(parcel_to_content(Parcel("round", b"order")), "train"))
    assert reply.content["parcel"]["statement"] == b"parcel-invalid"
    assert seen == []


def test_an_app_bundle_that_is_not_what_its_hash_says_is_refused(
    serving: Callable[[Callable[[Parcel], Parcel]], Node],
) -> None:
    node = serving(lambda parcel: parcel)
    reply = node.reply(node.deliver(parcel_to_content(Parcel("round", b"o")), extra=b"evil"))
    assert reply.content["parcel"]["statement"] == b"parcel-invalid"


def odd_contents() -> dict[str, RecordDict]:
    good = {"kind": "round", "statement": b"s", "payload": b"p"}

    def of(record: dict[str, object], **pieces: dict[str, object]) -> RecordDict:
        named = {name.replace("_", "-"): ConfigRecord(piece) for name, piece in pieces.items()}
        return RecordDict({"parcel": ConfigRecord(record), **named})

    array = ArrayRecord({"packed": Array(np.zeros(2, np.uint8))})
    return {
        "a site's kind": of({**good, "kind": "update"}),
        "text for bytes": of({**good, "statement": "s"}),
        "no statement": of({"kind": "round", "payload": b""}),
        "no payload": of({"kind": "round", "statement": b"s"}),
        "numbers for a payload": of({**good, "payload": [1, 2]}),
        "a piece of text": of(good, piece_1={"payload": "text"}),
        "a piece missing": of(good, piece_2={"payload": b"x"}),
        "an empty piece": of(good, piece_1={"at": 0}),
        "another record": of(good, other={"payload": b"x"}),
        "an array": RecordDict({"parcel": ConfigRecord(good), "piece-1": array}),
    }


@pytest.mark.parametrize("name", list(odd_contents()))
def test_malformed_parcels_are_named_so(name: str) -> None:
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1
    with pytest.raises(RefusalError) as caught:
        message_to_parcel(Message(odd_contents()[name], NODE_ID, "query"))
    assert caught.value.code == "parcel-invalid"


@pytest.mark.parametrize("size", [0, 1, 50, 51, 100, 307])
def test_a_payload_of_any_size_comes_back_as_it_was(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal pieces too: Flower knows objects by their hash."""
    monkeypatch.setattr(flower_worker, "INLINE_BYTES", 50)
    monkeypatch.setattr(flower_worker, "PIECE_BYTES", 100)
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, RUN_ID, 1
    parcel = Parcel("round", b"order", bytes(size))
    content = parcel_to_content(parcel)
    assert len(content) == 1 + (-(-size // 100) if size > 50 else 0)
    message = Message(content, NODE_ID, "query")
    contents = {i: one.deflate() for i, one in get_all_nested_objects(message).items()}
    inflated = inflate_object_from_contents(message.object_id, contents)
    inflated.metadata.__dict__["_message_type"] = "query"
    assert message_to_parcel(inflated) == parcel


def test_only_known_codes_leave() -> None:
    assert refusal_code(BudgetError("x", remedy="y")) == "budget-exceeded"
    assert refusal_code(AuricleError(CANARY, remedy="y", code="patient-0451")) == "internal"
    assert refusal_code(KeyError(CANARY)) == "internal"
    assert all(code == code.lower() and " " not in code for code in REFUSAL_CODES)
