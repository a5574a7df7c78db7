"""Flower behind one file: a SuperLink inside this process, and the FleetLink over it.

Only Flower's Fleet API is ever served, and by our own TLS listener (`coordinator.listeners`). The
Control API is not mounted at all and the Runtime API needs no socket: what a ServerApp process
would ask over HTTP is asked of the same handlers by a function call, so nobody on this machine or
outside can submit code, claim the task or push messages. No process is spawned, no dependency is
installed, no outside host is contacted.

Replies are mapped by the message that they answer (the source of an error message is wrong in
Flower 1.41), and are fetched once they are whole. Nobody polls by a clock: sites wait in
`coordinator.fleet_gate` until something is queued for them, and `wait` returns when something of
theirs has come.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

# Read by flwr at import: without them it contacts two outside hosts.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from fastapi import FastAPI
from flwr.app import Message
from flwr.app.message.message import remove_content_from_message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import (
    ISOLATION_MODE_PROCESS,
    NOOP_ACCOUNT_NAME,
    NOOP_FLWR_AID,
    SUPERLINK_NODE_ID,
    TRANSPORT_TYPE_GRPC_RERE,
    Status,
    SubStatus,
)
from flwr.common.serde import fab_to_proto, message_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PushAppMessagesRequest
from flwr.proto.task_pb2 import Task
from flwr.supercore.auth.typing import AccountInfo
from flwr.supercore.constant import NodeStatus
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.translation import ProtobufTranslationMiddleware
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.auth_plugin import NoOpControlAuthnPlugin
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig
from flwr.superlink.main import create_app
from flwr.superlink.routers.fleet.node_auth import NodeAuthMiddleware
from flwr.superlink.servicer.control import control_handlers
from flwr.superlink.servicer.runtime import runtime_handlers
from starlette.middleware.base import BaseHTTPMiddleware

from coordinator.fleet_gate import FleetGate
from coordinator.flower_content import content_to_parcel, parcel_to_content
from coordinator.link import Delivery, SiteGoneError
from privacy.parcel import Parcel

MESSAGE_TYPE = "query"
MESSAGE_TTL_S = 24 * 3600.0
MAX_REPLY_OBJECTS = 64  # message, records and their pieces: a parcel of nearly a gigabyte
HOLD_S = 10.0
LOOK_S = 5.0  # a run that Flower has given up is replaced this late at most

_OWNER = AccountInfo(flwr_aid=NOOP_FLWR_AID, account_name=NOOP_ACCOUNT_NAME)
_SUPERLINK_NODE = Node(node_id=SUPERLINK_NODE_ID)
_NODE_HEARTBEAT_S = 30.0
_ADMITTED = (NodeStatus.REGISTERED, NodeStatus.ONLINE, NodeStatus.OFFLINE)
# Errors as Flower's clients read them, protobuf, and the check of each node's signature.
_LAYERS = (BaseHTTPMiddleware, ProtobufTranslationMiddleware, NodeAuthMiddleware)
_STUB = {
    "pyproject.toml": b"""[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "auricle-stub"
version = "1.0.0"
description = "Carries no code: sites run what they have installed"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "auricle"

[tool.flwr.app.components]
serverapp = "auricle_stub:server"
clientapp = "auricle_stub:client"
""",
    "auricle_stub.py": b"server = client = None\n",
}

_log = logging.getLogger(__name__)


def create_superlink(database: Path) -> FastAPI:
    """Flower's SuperLink with node authentication, its state in the SQLite file `database`.

    The app serves every Flower API: whoever listens must let through /v1/fleet/ alone.
    """
    # flwr makes its loggers print; the coordinator's own log tells what matters.
    logging.getLogger("flwr").setLevel(logging.WARNING)
    config = SuperLinkLifespanConfig(
        control_address="",
        health_server_address=None,
        host="127.0.0.1",
        port=0,
        insecure=True,
        certificates=None,
        superexec_auth_secret=secrets.token_bytes(32),  # nobody may acquire tasks
        authn_plugin=NoOpControlAuthnPlugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE,
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(database),
        isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )
    app: FastAPI = create_app(config, SuperLinkLifespan)
    # Flower's other layers pass sites' calls on untouched, and each costs a task a request.
    app.user_middleware = [layer for layer in app.user_middleware if layer.cls in _LAYERS]
    if [layer.cls for layer in app.user_middleware] != list(_LAYERS):
        raise RuntimeError("this version of flwr authenticates nodes in another way")
    return app


class FlowerLink:
    """FleetLink over the embedded SuperLink `app`.

    One Flower run serves all jobs of the process (Flower's task identity is process-global); it is
    begun when the first parcel is sent. Not safe for several threads, but for `set_fleet`,
    `online` and `release`.
    """

    def __init__(
        self,
        app: FastAPI,
        hold_s: float = HOLD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`hold_s`: longest that a site's question for messages is held open."""
        self._clock = clock
        self._looked_at_s = 0.0
        self.gate = FleetGate(app, hold_s)
        """What the public listener serves of `app`."""
        self._state = app.state.linkstate_factory.state()
        self._fleet_lock = threading.Lock()
        self._node_ids: dict[str, int] = {}
        self._run: _Run | None = None
        self._flights: dict[str, tuple[str, int]] = {}  # message: (site, run)
        self._arriving: dict[str, tuple[str, list[str]]] = {}  # message: (reply, its objects)

    def set_fleet(self, node_keys: Mapping[str, str]) -> None:
        """Let in exactly these sites, by the OpenSSH public key of their node.

        A node that is left out is refused from its next call on, in whatever it was doing.
        """
        with self._fleet_lock:
            wanted = {_key_bytes(openssh): site for site, openssh in node_keys.items()}
            kept = {}
            for node in self._state.get_node_info(statuses=_ADMITTED):
                if node.public_key in wanted:
                    kept[wanted.pop(node.public_key)] = node.node_id
                else:
                    self._state.delete_node(NOOP_FLWR_AID, node.node_id)
                    self.gate.wake([node.node_id])  # its next call, which is refused, comes now
            for key, site in wanted.items():
                kept[site] = self._state.create_node(
                    NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, _NODE_HEARTBEAT_S, name=site
                )
            self._node_ids = kept

    def online(self) -> frozenset[str]:
        """Sites whose node has sent a heartbeat within its interval."""
        nodes = self._state.get_node_info(statuses=[NodeStatus.ONLINE])
        alive = {node.node_id for node in nodes}
        return frozenset(site for site, node in self._node_ids.items() if node in alive)

    def send(self, site: str, parcel: Parcel) -> str:
        """Queue `parcel` for the site's node, which fetches it at its next poll."""
        run = self._running()
        node = self._node_ids.get(site)
        if node is None:
            raise SiteGoneError(site)
        message = Message(parcel_to_content(parcel), node, MESSAGE_TYPE, ttl=MESSAGE_TTL_S)
        with no_object_id_recompute():
            message_id = str(message.object_id)
            message.metadata.__dict__["_message_id"] = message_id
            request = PushAppMessagesRequest(
                messages_list=[message_to_proto(remove_content_from_message(message))],
                message_object_trees=[get_object_tree(message)],
            )
            objects = get_all_nested_objects(message)
            # One transaction: a node that saw a message before its objects would wait a second.
            with self._state.session():
                response = runtime_handlers.push_messages(request, self._state, run.task)
                for object_id in response.objects_to_push:
                    content = objects[object_id].deflate()
                    self._state.store_object(run.run_id, response.session_id, object_id, content)
        self._flights[message_id] = (site, run.run_id)
        self.gate.wake([node])
        return message_id

    def poll(self, message_ids: Collection[str]) -> list[Delivery]:
        """Replies whose every byte is here; errors of what went down with a run or a process."""
        run = self._running()
        asked = [m for m in message_ids if m in self._flights]
        lost = [m for m in asked if self._flights[m][1] != run.run_id]
        deliveries = [self._delivery(message, error_code="run-lost") for message in lost]
        started = self.gate.take_started()
        kept = [m for m in asked if m not in lost and m not in self._arriving]
        waiting = [m for m in kept if not self.gate.unfinished(m)]
        if waiting:
            request = PullAppMessagesRequest(message_ids=waiting)
            response = runtime_handlers.pull_messages(request, self._state, run.task)
            for reply, tree in zip(
                response.messages_list, response.message_object_trees, strict=True
            ):
                objects = [node.object_id for node in iterate_object_tree(tree)]
                metadata = reply.metadata
                self._arriving[metadata.reply_to_message_id] = (metadata.message_id, objects)
        arrived = [m for m in asked if m in self._arriving]
        anew = [m for m in kept if self._node_ids.get(self._flights[m][0]) in started]
        gone = [m for m in anew if m not in arrived]
        deliveries += [self._delivery(m, error_code="site-restarted") for m in gone]
        return deliveries + [d for m in arrived if (d := self._fetch(run, m)) is not None]

    def wait(self, timeout_s: float) -> None:
        """Return when a reply may have come, or after `timeout_s`."""
        self.gate.wait_for_news(timeout_s)

    def release(self) -> None:
        """Answer the sites that wait for messages, and end `wait`: the listener is to stop."""
        self.gate.close()

    def close(self) -> None:
        """End the run; sites keep what they have and wait for the coordinator's next process."""
        if self._run is not None:
            self._run.heartbeat.stop()
            self._state.finish_task(self._run.task.task_id, SubStatus.COMPLETED, "")
            self._run = None

    def _running(self) -> _Run:
        """The process's run, begun now if there is none or if Flower has given it up."""
        now_s = self._clock()
        if self._run is not None and now_s < self._looked_at_s + LOOK_S:
            return self._run
        self._looked_at_s = now_s
        if self._run is not None:
            status = self._state.get_run_status({self._run.run_id})[self._run.run_id]
            if status.status == Status.RUNNING:
                return self._run
            _log.warning("flower ended run %d; another begins", self._run.run_id)
            self._run.heartbeat.stop()
        self._run = _begin_run(self._state)
        return self._run

    def _fetch(self, run: _Run, message: str) -> Delivery | None:
        reply_id, object_ids = self._arriving[message]
        if len(object_ids) > MAX_REPLY_OBJECTS:
            return self._delivery(message, error_code="reply-oversized")
        contents = {}
        # Sites send a message's own object last: while it is missing, nothing large is read.
        for object_id in reversed(object_ids):
            content = self._state.get_object(run.run_id, object_id)
            if content is None:
                return self._delivery(message, error_code="reply-lost")
            if content == b"":
                return None
            contents[object_id] = content
        confirmation = ConfirmMessageReceivedRequest(
            node=_SUPERLINK_NODE, run_id=run.run_id, message_object_id=reply_id
        )
        runtime_handlers.confirm_message_received(confirmation, self._state, run.task)
        try:
            reply = inflate_object_from_contents(reply_id, contents)
            if reply.has_error():
                return self._delivery(message, error_code=f"flower-error-{reply.error.code}")
            return self._delivery(message, parcel=content_to_parcel(reply.content))
        except Exception:  # noqa: BLE001 - a site made these bytes; no parser's error may end us
            return self._delivery(message, error_code="reply-malformed")

    def _delivery(
        self, message: str, parcel: Parcel | None = None, error_code: str | None = None
    ) -> Delivery:
        self._arriving.pop(message, None)
        site, _ = self._flights.pop(message)
        return Delivery(message, site, parcel, error_code)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A Flower run whose task this process holds."""

    run_id: int
    task: Task
    heartbeat: HeartbeatSender


def _begin_run(state: Any) -> _Run:
    """Start a run of the stub app, end earlier ones, and hold its task as a ServerApp would."""
    for earlier in state.get_run_info(statuses=[Status.PENDING, Status.STARTING, Status.RUNNING]):
        state.stop_run(earlier.run_id)
    content, _ = build_fab_from_files(_STUB)
    fab = Fab(hashlib.sha256(content).hexdigest(), content, {})
    request = StartRunRequest(fab=fab_to_proto(fab))
    started = control_handlers.start_run(request, _OWNER, state, TRANSPORT_TYPE_GRPC_RERE)
    run = state.get_run_info(run_ids=[started.run_id])[0]
    task = Task(task_id=run.primary_task_id, run_id=run.run_id)
    state.claim_task(task.task_id)
    state.activate_task(task.task_id)
    TaskIdentity.task_id = task.task_id
    TaskIdentity.run_id = run.run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID
    heartbeat = HeartbeatSender(lambda: bool(state.acknowledge_task_heartbeat(task.task_id)))
    heartbeat.start()
    return _Run(run.run_id, task, heartbeat)


def _key_bytes(openssh: str) -> bytes:
    key = load_ssh_public_key(openssh.encode())
    return bytes(public_key_to_bytes(key))
