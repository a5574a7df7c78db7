"""gRPC from outside: a real server and channel, tokens, certificates, health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import ipaddress
import time

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from client_node.live.errors import LiveError
from client_node.live.rpc import live_pb2, live_pb2_grpc
from client_node.live.rpc.server import CODE_KEY, SERVICE, RpcServer, RpcSettings
from client_node.live.service import LiveLimits, LiveService
from tests.client_node.live.live_support import LOUD, CountingEar, loudness_network, sound


class Tokens:
    def is_open(self):
        return False

    def scopes_of(self, token):
        return {"good": frozenset({"transcribe"}), "page-only": frozenset({"page"})}.get(token)


@contextlib.asynccontextmanager
async def serving(settings=None, access=None, limits=None, ears=None, credentials=None):
    service = LiveService(loudness_network, ears or CountingEar(), time.monotonic, limits=limits)
    server = RpcServer(service, settings or RpcSettings(), access)
    await server.start()
    address = f"127.0.0.1:{server.port}"
    channel = (
        grpc.aio.insecure_channel(address)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials)
    )
    try:
        async with asyncio.timeout(60), channel:
            yield channel
    finally:
        await server.stop()
        service.close()


def start(**fields):
    return live_pb2.Request(start=live_pb2.Start(**fields))


def audio(*stretches):
    data = (sound(*stretches) * 32767).astype("<i2").tobytes()
    return [live_pb2.Request(audio=data[at : at + 6400]) for at in range(0, len(data), 6400)]


async def transcribe(channel, requests, **options):
    call = live_pb2_grpc.LiveTranscriptionStub(channel).Transcribe(iter(requests), **options)
    return [event async for event in call]


def refused(requests, **options):
    """Status and code of a call that is refused."""

    async def run():
        metadata = options.pop("metadata", None)
        async with serving(**options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await transcribe(channel, requests, metadata=metadata)
            trailing = dict(raised.value.trailing_metadata())
            return raised.value.code(), trailing.get(CODE_KEY), raised.value.details()

    return asyncio.run(run())


def test_a_call_is_a_stream_with_partials_and_finals():
    async def run():
        async with serving() as channel:
            speech = audio((0.4, 0), (1.5, LOUD), (0.6, 0), (1.0, LOUD), (0.5, 0))
            return await transcribe(channel, [start(terms=["metformin"]), *speech])

    events = asyncio.run(run())
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "speech_started"
    assert "partial" in kinds
    finals = [event.final for event in events if event.HasField("final")]
    assert [f.text for f in finals] == ["word0 word1 word2", "word0 word1"]
    assert finals[0].words[0].confidence == pytest.approx(0.9)
    assert finals[0].release == "r7"


@pytest.mark.parametrize(
    ("requests", "status", "code"),
    [
        ([], grpc.StatusCode.INVALID_ARGUMENT, "stream-malformed"),
        (audio((0.1, 0)), grpc.StatusCode.INVALID_ARGUMENT, "stream-malformed"),
        ([start(rate_hz=1)], grpc.StatusCode.INVALID_ARGUMENT, "stream-rate"),
        ([start(), start()], grpc.StatusCode.INVALID_ARGUMENT, "stream-malformed"),
        ([start(encoding=7)], grpc.StatusCode.INVALID_ARGUMENT, "stream-malformed"),
        (
            [start(), live_pb2.Request(audio=b"\0")],
            grpc.StatusCode.INVALID_ARGUMENT,
            "stream-samples",
        ),
        (
            [start(), live_pb2.Request(audio=bytes(300_000))],
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            None,
        ),
    ],
)
def test_what_is_no_stream_is_refused_with_a_code(requests, status, code):
    assert refused(requests)[:2] == (status, code)


def test_limits_have_their_own_status():
    speech = [start(), *audio((2.0, 0))]
    limits = LiveLimits(stream_s=1.0)
    assert refused(speech, limits=limits)[:2] == (
        grpc.StatusCode.OUT_OF_RANGE,
        "stream-too-long",
    )
    assert refused([start()], limits=LiveLimits(streams=0))[:2] == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "stream-busy",
    )


def test_a_token_that_may_transcribe_is_needed():
    async def run():
        async with serving(access=Tokens()) as channel:
            good = (("authorization", "Bearer good"),)
            return await transcribe(channel, [start()], metadata=good)

    assert asyncio.run(run()) == []
    for header in (None, "Bearer bad", "Bearer page-only", "good"):
        metadata = None if header is None else (("authorization", header),)
        assert refused([start()], access=Tokens(), metadata=metadata)[:2] == (
            grpc.StatusCode.UNAUTHENTICATED,
            "stream-unauthorised",
        )


def test_a_failure_tells_nothing_of_itself():
    class Broken(CountingEar):
        def final(self, samples_N):
            raise RuntimeError("/home/secret and the transcript")

    status, _, details = refused([start(), *audio((1.0, LOUD), (1.0, 0))], ears=Broken())
    assert status == grpc.StatusCode.INTERNAL
    assert "secret" not in details


def test_health_and_reflection_answer():
    async def run():
        async with serving() as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
            asked = reflection_pb2.ServerReflectionRequest(list_services="")
            call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(
                iter([asked])
            )
            listed = [reply async for reply in call]
            return answer.status, {s.name for s in listed[0].list_services_response.service}

    status, names = asyncio.run(run())
    assert status == health_pb2.HealthCheckResponse.SERVING
    assert {SERVICE, "grpc.health.v1.Health"} <= names


class Authority:
    """A certificate authority for one test; writes PEM files."""

    def __init__(self, folder):
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.ca = folder / "ca.pem"
        self._write("ca", self.key, self._name("ca"), is_ca=True)

    def issue(self, name):
        key = ec.generate_private_key(ec.SECP256R1())
        self._write(name, key, self._name(name), is_ca=False)
        (self.folder / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    @staticmethod
    def _name(name):
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])

    def _write(self, name, key, subject, *, is_ca):
        now = datetime.datetime.now(datetime.UTC)
        alternative = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        made = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name("ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(alternative, critical=False)
            .sign(self.key, hashes.SHA256())
        )
        path = self.folder / f"{name}.pem"
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM))


def test_with_mutual_tls_only_certified_clients_are_heard(tmp_path):
    authority = Authority(tmp_path)
    certificate, key = authority.issue("server")
    client_certificate, client_key = authority.issue("client")
    settings = RpcSettings(certificate=certificate, key=key, client_authority=authority.ca)
    root = authority.ca.read_bytes()
    known = grpc.ssl_channel_credentials(
        root, client_key.read_bytes(), client_certificate.read_bytes()
    )

    async def run():
        async with serving(settings, credentials=known) as channel:
            return await transcribe(channel, [start(), *audio((1.0, LOUD), (0.5, 0))])

    assert any(event.HasField("final") for event in asyncio.run(run()))
    status, _, _ = refused(
        [start()], settings=settings, credentials=grpc.ssl_channel_credentials(root)
    )
    assert status == grpc.StatusCode.UNAVAILABLE


def test_the_network_is_not_served_without_tls(tmp_path):
    for host in ("0.0.0.0", "192.168.1.5", "site.example"):
        with pytest.raises(LiveError) as raised:
            RpcSettings(host=host)
        assert raised.value.code == "rpc-plaintext"
    with pytest.raises(LiveError) as raised:
        RpcSettings(certificate=tmp_path / "only.pem")
    assert raised.value.code == "rpc-certificate"
    assert RpcSettings(host="::1").host == "::1"
