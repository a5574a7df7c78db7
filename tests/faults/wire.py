"""Parcels between the processes of a test federation, over sockets of the file system.

A parcel is three length-prefixed messages. The listening socket belongs to the test, which lends it
to each life of a site: while a site is down its callers wait in the socket's queue, and no test
needs to sleep until the site is up again.
"""

from __future__ import annotations

from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import cast

from privacy.parcel import Parcel, ParcelKind


def listen(path: Path) -> Listener:
    """A listener at `path`, which must be short enough for a socket's name."""
    return Listener(str(path), "AF_UNIX", backlog=16)


def write_parcel(connection: Connection, parcel: Parcel) -> None:
    """Send one parcel."""
    for part in (parcel.kind.encode(), parcel.statement, parcel.payload):
        connection.send_bytes(part)


def read_parcel(connection: Connection) -> Parcel:
    """Receive one parcel. Raises EOFError or OSError where the other side went away."""
    kind, statement, payload = (connection.recv_bytes() for _ in range(3))
    return Parcel(cast("ParcelKind", kind.decode()), statement, payload)


def ask(path: Path, parcel: Parcel) -> Parcel:
    """The answer to `parcel` of whoever listens at `path`. Raises as `read_parcel` does."""
    with Client(str(path), "AF_UNIX") as connection:
        write_parcel(connection, parcel)
        return read_parcel(connection)
