"""A certificate authority and a small HTTPS coordinator, for tests of joining and starting."""

from __future__ import annotations

import datetime as dt
import http.server
import ipaddress
import json
import ssl
import threading
import time
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from privacy.signing import Identity


class Authority:
    """A certificate authority and one server certificate for 127.0.0.1."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        now = dt.datetime.now(dt.UTC)
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))

        def builder(subject: str) -> x509.CertificateBuilder:
            attribute = x509.NameAttribute(NameOID.COMMON_NAME, subject)
            return (
                x509.CertificateBuilder()
                .subject_name(name if subject == "test CA" else x509.Name([attribute]))
                .issuer_name(name)
                .serial_number(x509.random_serial_number())
                .not_valid_before(now - dt.timedelta(hours=1))
                .not_valid_after(now + dt.timedelta(days=1))
            )

        ca = (
            builder("test CA")
            .public_key(ca_key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(ca_key, hashes.SHA256())
        )
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        server = (
            builder("server")
            .public_key(key.public_key())
            .add_extension(x509.SubjectAlternativeName([address]), critical=False)
            .sign(ca_key, hashes.SHA256())
        )
        self.ca_pem = ca.public_bytes(serialization.Encoding.PEM).decode()
        self.certificate, self.key = folder / "server.pem", folder / "server.key"
        self.certificate.write_bytes(server.public_bytes(serialization.Encoding.PEM))
        self.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )


class FakeCoordinator:
    """An HTTPS server that checks an enrolment as the registry does, and remembers it."""

    def __init__(self, authority: Authority, identity: Identity) -> None:
        self.identity = identity
        self.answer: tuple[int, dict[str, object]] = (
            200,
            {"coordinator_public_pem": identity.public.public_pem, "approved": True},
        )
        self.requests: list[dict[str, str]] = []
        self.ahead_s = 0.0
        """By how much this coordinator's clock is ahead of the system's."""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.reply(200, {"status": "ok"})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.path.startswith("/v1/fleet/"):
                    return self.reply(401, {})  # as for a revoked node
                outer.requests.append({"path": self.path, **json.loads(body)})
                self.reply(*outer.answer)

            def reply(self, status: int, fields: dict[str, object]) -> None:
                data = json.dumps(fields).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def date_time_string(self, timestamp: float | None = None) -> str:
                told_s = time.time() + outer.ahead_s if timestamp is None else timestamp
                return super().date_time_string(told_s)  # type: ignore[arg-type]

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.certificate, authority.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None  # type: ignore[method-assign]
        self.url = f"https://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self._thread.join()
        self.server.server_close()
