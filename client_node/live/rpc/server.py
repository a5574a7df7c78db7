"""The gRPC side of live transcription: one call is one stream; health and reflection beside it.

Runs on the event loop of the HTTP service, whose streams it shares. Without a certificate it
listens on loopback only. With a client authority as well, both sides show certificates (mTLS).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import ipaddress
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Protocol

import grpc  # type: ignore[import-untyped, unused-ignore]
from fastapi import APIRouter
from grpc_health.v1 import (  # type: ignore[import-untyped, unused-ignore]
    health,
    health_pb2,
    health_pb2_grpc,
)
from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped, unused-ignore]

from client_node.live.errors import LiveError
from client_node.live.events import Event, Final, Partial
from client_node.live.pcm import RATE_HZ
from client_node.live.rpc import live_pb2, live_pb2_grpc
from client_node.live.service import LiveService, LiveStream, Opening
from model_core.errors import ModelCoreError
from privacy.errors import AuricleError

SERVICE: str = live_pb2.DESCRIPTOR.services_by_name["LiveTranscription"].full_name
SCOPE = "transcribe"
CODE_KEY = "auricle-code"  # of the trailing metadata
_GRACE_S = 2.0
_SPARE_BYTES = 1024
_LOG = logging.getLogger(__name__)
_ENCODINGS = {live_pb2.Start.S16LE: "s16le", live_pb2.Start.F32LE: "f32le"}
_STATUS = {
    "stream-busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "stream-too-long": grpc.StatusCode.OUT_OF_RANGE,
    "stream-idle": grpc.StatusCode.DEADLINE_EXCEEDED,
    "stream-closed": grpc.StatusCode.UNAVAILABLE,
    "stream-unauthorised": grpc.StatusCode.UNAUTHENTICATED,
}


class Access(Protocol):
    """Who may transcribe."""

    def is_open(self) -> bool:
        """Whether nobody needs a token."""

    def scopes_of(self, token: str) -> frozenset[str] | None:
        """What a token allows; None for one that is unknown."""


@dataclasses.dataclass(frozen=True)
class RpcSettings:
    """Where to listen, and with which files in PEM.

    Attributes:
        host, port: the address; port 0 takes a free one.
        certificate, key: of this service; None for loopback without TLS.
        client_authority: who signs clients' certificates; None asks for none.
    """

    host: str = "127.0.0.1"
    port: int = 0
    certificate: Path | None = None
    key: Path | None = None
    client_authority: Path | None = None

    def __post_init__(self) -> None:
        """Raises LiveError (rpc-plaintext, rpc-certificate)."""
        if (self.certificate is None) != (self.key is None) or (
            self.client_authority is not None and self.certificate is None
        ):
            raise LiveError(
                "a certificate, its key or both are missing",
                remedy="give both the certificate and its key",
                code="rpc-certificate",
            )
        if self.certificate is None and not _is_loopback(self.host):
            raise LiveError(
                "gRPC without TLS would be open to the network",
                remedy="give a certificate and its key, or listen on 127.0.0.1",
                code="rpc-plaintext",
            )


class RpcServer:
    """The listening server of one site."""

    def __init__(self, service: LiveService, settings: RpcSettings, access: Access | None) -> None:
        """`access` None lets everybody in who reaches the port."""
        self._service, self._settings, self._access = service, settings, access
        self.port = 0

    async def start(self) -> None:
        """Listen. Raises LiveError (rpc-port) where the port is taken."""
        # The limit makes gRPC refuse a large message before it is read whole.
        most = self._service.limits.message_bytes + _SPARE_BYTES
        options = [("grpc.max_receive_message_length", most), ("grpc.so_reuseport", 0)]
        self._server = grpc.aio.server(options=options)
        servicer = _Transcription(self._service, self._access)
        live_pb2_grpc.add_LiveTranscriptionServicer_to_server(  # type: ignore[no-untyped-call, unused-ignore]
            servicer, self._server
        )
        healthy = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(healthy, self._server)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, self._server)
        address = f"{self._settings.host}:{self._settings.port}"
        try:
            self.port = self._listen(address)
        except RuntimeError as error:
            raise LiveError(
                f"the port {self._settings.port} cannot be listened on",
                remedy="choose another port",
                code="rpc-port",
            ) from error
        await self._server.start()
        for name in ("", SERVICE):
            await healthy.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self) -> None:
        """Stop listening; open calls have two seconds."""
        await self._server.stop(_GRACE_S)

    def _listen(self, address: str) -> int:
        chosen = self._settings
        if chosen.certificate is None or chosen.key is None:
            return int(self._server.add_insecure_port(address))
        authority = chosen.client_authority
        credentials = grpc.ssl_server_credentials(
            [(chosen.key.read_bytes(), chosen.certificate.read_bytes())],
            root_certificates=None if authority is None else authority.read_bytes(),
            require_client_auth=authority is not None,
        )
        return int(self._server.add_secure_port(address, credentials))


def rpc_router(server: RpcServer) -> APIRouter:
    """No route: the server listens while the application runs."""

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        await server.start()
        yield
        await server.stop()

    return APIRouter(lifespan=lifespan)


class _Transcription(live_pb2_grpc.LiveTranscriptionServicer):
    def __init__(self, service: LiveService, access: Access | None) -> None:
        self._service, self._access = service, access

    async def Transcribe(  # noqa: N802 - gRPC's name
        self, requests: AsyncIterator[Any], context: Any
    ) -> AsyncIterator[Any]:
        stream: LiveStream | None = None
        try:
            await self._authorise(context)
            stream = await self._service.open(await self._opening(requests))
            listening = asyncio.create_task(_listen(requests, stream))
            try:
                async for event in stream.events():
                    yield _message(event)
                await listening
            finally:
                listening.cancel()
        except (AuricleError, ModelCoreError) as error:
            await _abort(context, error)
        except (asyncio.CancelledError, grpc.aio.AbortError):
            raise
        except Exception as error:  # noqa: BLE001 - its text may hold what was said
            _LOG.error("a live stream failed: %s", type(error).__name__)
            await context.abort(grpc.StatusCode.INTERNAL, "the service failed")
        finally:
            if stream is not None:
                stream.close()

    async def _authorise(self, context: Any) -> None:
        if self._access is None or await asyncio.to_thread(self._access.is_open):
            return
        header = dict(context.invocation_metadata()).get("authorization", "")
        kind, _, token = header.partition(" ")
        scopes = None
        if kind.lower() == "bearer" and token:
            scopes = await asyncio.to_thread(self._access.scopes_of, token.strip())
        if scopes is None or SCOPE not in scopes:
            raise LiveError(
                "a token that may transcribe is needed",
                remedy="send `authorization: Bearer TOKEN` as metadata",
                code="stream-unauthorised",
            )

    async def _opening(self, requests: AsyncIterator[Any]) -> Opening:
        try:
            first = await asyncio.wait_for(anext(requests), self._service.limits.idle_s)
        except TimeoutError:
            raise LiveError("no Start came", remedy="send one", code="stream-idle") from None
        except StopAsyncIteration:
            raise LiveError("no Start came", remedy="send one") from None
        if first.WhichOneof("message") != "start" or first.start.encoding not in _ENCODINGS:
            raise LiveError("the first message is no Start", remedy="send a Start first")
        start = first.start
        return Opening(
            _ENCODINGS[start.encoding], start.rate_hz or RATE_HZ, tuple(map(str, start.terms))
        )


async def _listen(requests: AsyncIterator[Any], stream: LiveStream) -> None:
    """Push what comes; a failure ends the stream, so that the telling side learns of it."""
    try:
        async for request in requests:
            if request.WhichOneof("message") != "audio":
                raise LiveError("a message after the Start is no audio", remedy="send audio")
            await stream.push(request.audio)
        await stream.finish()
    except LiveError as error:
        stream.fail(error)


def _message(event: Event) -> Any:
    if isinstance(event, Final):
        return live_pb2.Event(
            final=live_pb2.Final(
                utterance=event.utterance,
                start_s=event.start_s,
                end_s=event.end_s,
                text=event.text,
                words=[
                    live_pb2.Word(
                        word=word.text,
                        start_s=word.start_s,
                        end_s=word.end_s,
                        confidence=word.confidence,
                    )
                    for word in event.words
                ],
                release=event.release or "",
            )
        )
    if isinstance(event, Partial):
        return live_pb2.Event(
            partial=live_pb2.Partial(
                utterance=event.utterance, stable=event.stable, tentative=event.tentative
            )
        )
    started = live_pb2.SpeechStarted(utterance=event.utterance, at_s=event.at_s)
    return live_pb2.Event(speech_started=started)


async def _abort(context: Any, error: AuricleError | ModelCoreError) -> None:
    context.set_trailing_metadata(((CODE_KEY, error.code),))
    if isinstance(error, LiveError):
        status = _STATUS.get(error.code, grpc.StatusCode.INVALID_ARGUMENT)
        await context.abort(status, f"{error.problem}: {error.remedy}")
    message = "this site cannot serve now; its operator should run `auricle site status`"
    await context.abort(grpc.StatusCode.UNAVAILABLE, message)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    return False
