"""What can be wrong with a machine before anything runs, each with what to do about it."""

from __future__ import annotations

import ctypes
import dataclasses
import importlib.metadata
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil
from packaging.requirements import Requirement

from client_node import clock
from privacy.certificates import expiry_of

MIN_PYTHON = (3, 11)
MIN_DISK_BYTES = 3 * 2**30
MIN_MEMORY_BYTES = 2 * 2**30
TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True)
class Check:
    """One finding. `problem` says what was found; `remedy` is empty where nothing is to be done."""

    id: str
    ok: bool
    problem: str
    remedy: str = ""


def check_python(version: tuple[int, ...] = tuple(sys.version_info[:3])) -> Check:
    """The interpreter is new enough."""
    found = ".".join(map(str, version))
    if version >= MIN_PYTHON:
        return Check("python", ok=True, problem=f"Python {found}")
    return Check(
        "python",
        ok=False,
        problem=f"Python {found} is older than 3.11",
        remedy="install Python 3.11 or newer, remove .venv and run `make setup`",
    )


def check_versions(
    requirements: Iterable[str], version_of: Callable[[str], str] = importlib.metadata.version
) -> Check:
    """Every required package is installed in a version that the requirement allows."""
    wrong = []
    for text in requirements:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version_of(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} {found}, needs {requirement.specifier}")
    if not wrong:
        return Check("versions", ok=True, problem="all packages as tested or newer")
    return Check(
        "versions",
        ok=False,
        problem="; ".join(wrong),
        remedy="run `make setup`, or pip install with constraints.txt",
    )


def check_disk(folder: Path, free_bytes: int | None = None) -> Check:
    """There is room for models, features and receipts where the homes are."""
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    found = f"{free / 2**30:.1f} GiB free at {folder}"
    return Check(
        "disk",
        ok=free >= MIN_DISK_BYTES,
        problem=found,
        remedy="" if free >= MIN_DISK_BYTES else "free at least 3 GiB, or choose another --home",
    )


def check_memory(available_bytes: int | None = None) -> Check:
    """There is memory for one model and one batch."""
    available = psutil.virtual_memory().available if available_bytes is None else available_bytes
    ok = available >= MIN_MEMORY_BYTES
    return Check(
        "memory",
        ok=ok,
        problem=f"{available / 2**30:.1f} GiB of memory available",
        remedy="" if ok else "close other programs: one site needs 2 GiB",
    )


def check_espeak(library_path: Callable[[], str]) -> Check:
    """The speech synthesiser that the demo uses can be loaded."""
    try:
        ctypes.CDLL(library_path())
    except (OSError, ImportError) as error:
        return Check(
            "espeak",
            ok=False,
            problem=f"eSpeak NG cannot be loaded ({type(error).__name__})",
            remedy="pip install 'auricle[demo]' (only `auricle demo` needs it)",
        )
    return Check("espeak", ok=True, problem="eSpeak NG loads")


def check_weights(find: Callable[[], str]) -> Check:
    """The base model's weights are there and are the pinned ones; `find` raises if not."""
    try:
        found = find()
    except Exception as error:  # noqa: BLE001 - whatever a broken checkpoint raises is the finding
        problem = getattr(error, "problem", f"{type(error).__name__} while reading the weights")
        remedy = getattr(error, "remedy", "reinstall the weights")
        return Check("weights", ok=False, problem=problem, remedy=remedy)
    return Check("weights", ok=True, problem=found)


def check_port(port: int, host: str = "127.0.0.1") -> Check:
    """A port is free to listen on."""
    with socket.socket() as probe:
        # As servers do: a port in TIME_WAIT from an earlier run is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Check(
                f"port-{port}",
                ok=False,
                problem=f"port {port} on {host} cannot be used: {error.strerror}",
                remedy="stop the program that holds it, or choose another port",
            )
    return Check(f"port-{port}", ok=True, problem=f"port {port} is free")


def check_coordinator(
    url: str, ca: Path | None, now: Callable[[], float] = time.time
) -> list[Check]:
    """The coordinator answers over TLS under the given CA, for a while yet; the clocks agree.

    Without `ca` the system's certificate authorities are asked.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
        health = f"{url.rstrip('/')}/health"
        # Streamed: once the answer is read, the connection may be gone, its certificate with it.
        with httpx.stream("GET", health, verify=context, timeout=TIMEOUT_S) as reply:
            stream = reply.extensions["network_stream"]
            served = stream.get_extra_info("ssl_object").getpeercert(True)
    except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
        return [_unreachable(url, ca, error)]
    certificates = [("server-certificate", ssl.DER_cert_to_PEM_cert(served).encode())]
    if ca is not None:
        certificates.append(("authority", ca.read_bytes()))
    return [
        Check("coordinator", ok=True, problem=f"{url} answers over TLS under the given CA"),
        _check_clock(reply.headers.get("date"), now()),
        *(_check_expiry(name, pem, now()) for name, pem in certificates),
    ]


def _unreachable(url: str, ca: Path | None, error: Exception) -> Check:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return Check(
                "coordinator",
                ok=False,
                problem=f"the certificate of {url} is not one that {ca or 'this system'} vouches "
                f"for: {cause.verify_message}",
                remedy="give the CA from the operator's invite with --ca; if it is that one, "
                "another server answers at this address",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ssl.SSLError | FileNotFoundError):
        problem = f"the CA file {ca} cannot be read"
        return Check("coordinator", ok=False, problem=problem, remedy="give the CA as PEM")
    return Check(
        "coordinator",
        ok=False,
        problem=f"{url} cannot be reached: {type(error).__name__}",
        remedy="check that the coordinator runs, the address, the firewall, and HTTPS_PROXY",
    )


def _check_expiry(name: str, pem: bytes, now_s: float) -> Check:
    remedy = "tell the coordinator's operator: `auricle coordinator status` says what to do"
    expiry = expiry_of(pem, f"the coordinator's {name.replace('-', ' ')}", remedy)
    ending = bool(expiry.warning(datetime.fromtimestamp(now_s, UTC)))
    found = f"{expiry.certificate} is good until {expiry.at:%Y-%m-%d}"
    return Check(name, ok=not ending, problem=found, remedy=remedy if ending else "")


def _check_clock(date: str | None, now_s: float) -> Check:
    if date is None:
        return Check("clock", ok=True, problem="the coordinator does not tell its time")
    ahead = clock.ahead_s(date, now_s)
    ok = clock.agrees(ahead)
    return Check(
        "clock",
        ok=ok,
        problem=f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} "
        "the coordinator's",
        remedy="" if ok else "set this machine's clock by NTP: node authentication refuses it",
    )
