"""The site's one Flower file: a warm worker that answers messages with installed code only.

It takes the place of flwr's SuperExec and ClientApp processes: it claims tasks from the SuperNode's
loopback Runtime API, turns each Flower message into a parcel, hands it to the agent and sends the
answer back. The app bundle that Flower delivers with a run is never unpacked: its hash is checked
and its code is not run. An exception leaves as a code, never as text.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from typing import Any, cast

import httpx
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode, SubStatus
from flwr.common.serde import context_from_proto, fab_from_proto
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.fab import Fab
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message, push_task_output

from client_node.errors import RefusalError, refusal_code
from client_node.site_log import SiteLog
from privacy.parcel import COORDINATOR_KINDS, Parcel, ParcelKind

MESSAGE_TYPE = "query"
TASK_TYPE = "flwr-clientapp"
ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
POLL_S = 0.1  # between two questions to a SuperNode that cannot be asked, or holds none open
FIRST_RETRY_S, LAST_RETRY_S = 0.02, 0.5
# Flower makes an object, a request each way, of every record, and keeps equal ones once. So a small
# payload lies in the parcel's own record, and a large one in pieces that parcels can share.
INLINE_BYTES = 1 << 20
PIECE_BYTES = 16 << 20

Handle = Callable[[Parcel], Parcel]
Refuse = Callable[[str], Parcel]


def message_to_parcel(message: Message) -> Parcel:
    """Read a coordinator's message. Raises RefusalError ("parcel-invalid") if it is none."""
    try:
        if message.metadata.message_type != MESSAGE_TYPE:
            raise ValueError
        content = message.content
        records = content.config_records
        names = ["parcel", *(f"piece-{number}" for number in range(1, len(content)))]
        kind, statement = records["parcel"]["kind"], records["parcel"]["statement"]
        pieces = [records[name]["payload"] for name in names]
        if kind not in COORDINATOR_KINDS:
            raise ValueError
        if not all(isinstance(part, bytes) for part in (statement, *pieces)):
            raise ValueError
        return Parcel(cast(ParcelKind, kind), cast(bytes, statement), b"".join(pieces))
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise RefusalError(
            "parcel-invalid",
            "a message of the coordinator is not a parcel",
            remedy="check that coordinator and site run the same version of Auricle",
        ) from error


def parcel_to_content(parcel: Parcel) -> RecordDict:
    """A parcel as Flower carries it: one record, and one more for each piece of a large payload."""
    payload = parcel.payload
    inline = payload if len(payload) <= INLINE_BYTES else b""
    record = {"kind": parcel.kind, "statement": parcel.statement, "payload": inline}
    content = RecordDict({"parcel": ConfigRecord(record)})
    for at in range(0, 0 if inline else len(payload), PIECE_BYTES):
        # The place makes equal pieces of one payload two objects.
        piece = {"at": at, "payload": payload[at : at + PIECE_BYTES]}
        content[f"piece-{len(content)}"] = ConfigRecord(piece)
    return content


class FlowerWorker:
    """Answers the SuperNode's tasks, one at a time, until told to stop."""

    def __init__(
        self, address: str, secret: bytes, handle: Handle, refuse: Refuse, log: SiteLog
    ) -> None:
        """`address` is the Runtime API's host:port; `refuse` makes a refusal of a code."""
        self._address = address
        self._handle = handle
        self._refuse = refuse
        self._log = log
        self._version = RuntimeVersionHttpInterceptor(component_name="SuperExec")
        auth = SuperExecAuthHttpInterceptor(
            master_secret=secret, protected_methods=frozenset({ACQUIRE_METHOD})
        )
        self._tasks = self._client(self._version, auth)

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set. What the agent raises to stop the service comes through."""
        request = AcquireTaskRequest(supported_task_types=[TASK_TYPE])
        connected = False
        try:
            while not stop.is_set():
                token, asked_at_s = "", time.monotonic()
                try:
                    token = self._tasks.AcquireTask(request).token
                    changed, connected = not connected, True
                except httpx.HTTPError:
                    changed, connected = connected, False
                if changed:
                    self._log.event("runtime-connected" if connected else "runtime-lost")
                if token:
                    self._serve(token)
                else:
                    stop.wait(max(0.0, asked_at_s + POLL_S - time.monotonic()))
        finally:
            self._tasks.close()

    def _serve(self, token: str) -> None:
        """Answer one task. A broken connection loses the task; the outbox has the update."""
        started = time.monotonic()
        client = self._client(self._version, RuntimeTokenHttpInterceptor(token))
        heartbeat = HeartbeatSender(_heartbeat(client))
        heartbeat.start()
        try:
            message, context, bundle = _pull_task(client)
            reply = self._answer(message, bundle)
            push_message(client, reply, context)
            push_task_output(client, context, SubStatus.COMPLETED, "")
            self._log.event("task-answered", seconds=round(time.monotonic() - started, 3))
        except Exception as error:  # noqa: BLE001 - one lost task does not end the service
            self._log.event("task-lost", seconds=round(time.monotonic() - started, 3))
            self._log.fault(error)
        finally:
            heartbeat.stop()
            client.close()

    def _answer(self, message: Message, bundle: Any) -> Message:
        try:
            if hashlib.sha256(bundle.content).hexdigest() != bundle.hash_str:
                reply = self._refuse("parcel-invalid")
            else:
                reply = self._handle(message_to_parcel(message))
            return Message(parcel_to_content(reply), reply_to=message)
        except RefusalError as error:
            return Message(parcel_to_content(self._refuse(error.code)), reply_to=message)
        except Exception as error:  # noqa: BLE001 - the boundary: a code leaves, never words
            code = refusal_code(error)
            self._log.fault(error)
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, code), reply_to=message)

    def _client(self, *interceptors: Any) -> RuntimeHttpClient:
        # No retries here: flwr's retry interrupts the process on a 401, and the loopback peer is
        # either alive or about to be replaced together with this worker.
        return RuntimeHttpClient.from_server_address(
            server_address=self._address,
            insecure=True,
            root_certificates=None,
            interceptors=list(interceptors),
        )


def _pull_task(client: RuntimeHttpClient) -> tuple[Message, Context, Fab]:
    """Message, context and app bundle of the claimed task.

    As flwr's own `pull_task_input`, but an object that the SuperNode is still fetching is asked
    for again after `FIRST_RETRY_S` and not after a second, which would be most of a round.
    """
    task = client.PullTaskInput(PullTaskInputRequest())
    context = context_from_proto(task.context)
    TaskIdentity.task_id = task.task_id
    TaskIdentity.run_id = task.run.run_id
    TaskIdentity.node_id = context.node_id
    pulled = client.PullMessages(PullAppMessagesRequest())
    if not pulled.messages_list:
        raise ValueError("the task has no message")
    (tree, *_), node = pulled.message_object_trees, Node(node_id=context.node_id)
    message = pull_and_inflate_object_from_tree(
        tree,
        make_pull_object_fn_protobuf(client.PullObject, node, context.run_id),
        make_confirm_message_received_fn_protobuf(
            client.ConfirmMessageReceived, node, context.run_id
        ),
        return_type=Message,
        max_tries_per_object=None,  # a slow line may take longer than flwr's five hundred tries
        initial_backoff=FIRST_RETRY_S,
        backoff_cap=LAST_RETRY_S,
    )
    # A message does not carry its own id; it is the id of its object tree.
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message, context, fab_from_proto(task.fab)


def _heartbeat(client: RuntimeHttpClient) -> Callable[[], bool]:
    """Tell the SuperNode that the task lives. A lost beat must not interrupt a private round."""

    def beat() -> bool:
        try:
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.HTTPStatusError:
            return True  # the task is gone; pushing the answer will find out
        except httpx.TransportError:
            return False
        return True

    return beat
