"""Stock Flower for `benchmarks.round_overhead`: own processes, FedAvg, TLS, node authentication.

SuperLink and SuperNodes are flwr's commands as its documentation starts them; the app is a
ServerApp with the FedAvg strategy and a ClientApp that answers an array of the same size at once,
new in every byte. Installing an app's dependencies is switched off, which spares each start some
seconds. A round's seconds are wall time from one call of `configure_train` to the next.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from coordinator.tls import make_authority, make_server
from deploy.demo.processes import Processes

LIMIT_S = 1800.0
_WATCH_S = 0.5
_PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "stock-rounds"
version = "1.0.0"
description = "FedAvg over random arrays"
license = "Apache-2.0"
dependencies = ["flwr"]

[tool.flwr.app]
publisher = "auricle"

[tool.flwr.app.components]
serverapp = "stock_rounds:server"
clientapp = "stock_rounds:client"

[tool.flwr.app.config]
numbers = 1
rounds = 1
sites = 1
times = ""
"""
_APP = '''"""FedAvg over arrays of random numbers."""
import json, time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

client = ClientApp()
server = ServerApp()


class TimedFedAvg(FedAvg):
    def __init__(self, **options):
        super().__init__(**options)
        self.begun_at_s = []

    def configure_train(self, *arguments, **options):
        self.begun_at_s.append(time.time())
        return super().configure_train(*arguments, **options)


@client.train()
def train(message: Message, context: Context) -> Message:
    numbers_D = message.content["arrays"].to_numpy_ndarrays()[0]
    random_D = np.random.default_rng().random(1) + np.arange(numbers_D.size)
    content = {
        "arrays": ArrayRecord([random_D.astype(np.float32)]),
        "metrics": MetricRecord({"num-examples": 1}),
    }
    return Message(RecordDict(content), reply_to=message)


@server.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = TimedFedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=config["sites"],
        min_available_nodes=config["sites"],
    )
    initial = ArrayRecord([np.zeros(config["numbers"], np.float32)])
    strategy.start(grid, initial, num_rounds=config["rounds"])
    Path(config["times"]).write_text(json.dumps(strategy.begun_at_s))
'''


def cpu_seconds() -> float:
    """CPU time so far of this process, of what it started, and of what has ended below those."""
    total_s = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            total_s += sum(process.cpu_times()[:4])
    return total_s


def stock_round_seconds(
    folder: Path, sites: tuple[str, ...], numbers: int, rounds: int
) -> tuple[list[float], float]:
    """Wall seconds of each round but the first of a run of `rounds` + 2, in the empty `folder`.

    With them the CPU seconds of all processes, for each round.
    """
    app, times = folder / "app", folder / "times.json"
    app.mkdir(parents=True)
    (app / "pyproject.toml").write_text(_PROJECT)
    (app / "stock_rounds.py").write_text(_APP)
    config = f'numbers={numbers} rounds={rounds + 2} sites={len(sites)} times="{times}"'
    with _stock(folder, sites) as environment:
        before_s = cpu_seconds()
        _flwr(environment, "run", str(app), "local", "--run-config", config)
        end_s, pause = time.monotonic() + LIMIT_S, threading.Event()
        while not (times.exists() and times.read_text()):
            if time.monotonic() > end_s:
                raise RuntimeError(f"stock Flower did not finish; see {folder}")
            pause.wait(_WATCH_S)
        cpu_s = (cpu_seconds() - before_s) / (rounds + 2)
    begun_at_s: list[float] = json.loads(times.read_text())
    return [later - before for before, later in itertools.pairwise(begun_at_s)][1:], cpu_s


@contextlib.contextmanager
def _stock(folder: Path, sites: tuple[str, ...]) -> Iterator[dict[str, str]]:
    """A SuperLink and a SuperNode for each site, running; yields the environment of `flwr`."""
    now = datetime.datetime.now(datetime.UTC)
    authority = make_authority("stock-rounds", now)
    server = make_server(authority, ["localhost", "127.0.0.1"], now)
    for name, data in (
        ("ca.pem", authority.certificate_pem),
        ("server.pem", server.certificate_pem),
        ("server.key", server.key_pem),
    ):
        (folder / name).write_bytes(data)
    port = _free_port()
    home = folder / "flwr-home"
    home.mkdir()
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "local"\n\n[superlink.local]\naddress = "127.0.0.1:{port}"\n'
        f'root-certificates = "{folder / "ca.pem"}"\n'
    )
    environment = {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    with Processes(environment) as running:
        running.start("superlink", _superlink(folder, port), folder / "superlink.log")
        _await_port(port)
        for site in sites:
            public = _node_key(folder / site)
            _flwr(environment, "supernode", "register", str(public), "local")
            running.start(site, _supernode(folder, site, port), folder / f"{site}.log")
        yield environment


def _superlink(folder: Path, port: int) -> list[str]:
    return [
        *(_program("flower-superlink"), "--host", "127.0.0.1", "--port", str(port)),
        *("--ssl-ca-certfile", str(folder / "ca.pem")),
        *("--ssl-certfile", str(folder / "server.pem")),
        *("--ssl-keyfile", str(folder / "server.key")),
        *("--database", str(folder / "state.db"), "--enable-supernode-auth"),
        "--disable-runtime-dependency-installation",
    ]


def _supernode(folder: Path, site: str, port: int) -> list[str]:
    return [
        *(_program("flower-supernode"), "--superlink", f"127.0.0.1:{port}"),
        *("--root-certificates", str(folder / "ca.pem")),
        *("--auth-supernode-private-key", str(folder / site)),
        *("--host", "127.0.0.1", "--port", str(_free_port())),
    ]


def _node_key(path: Path) -> Path:
    """Write a P-384 key to `path`; returns the file of its public half."""
    key = ec.generate_private_key(ec.SECP384R1())
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    path.write_bytes(secret)
    public = path.with_suffix(".pub")
    public.write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return public


def _flwr(environment: dict[str, str], *words: str) -> None:
    done = subprocess.run(
        [_program("flwr"), *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"flwr {words[0]}: {done.stdout[-500:]} {done.stderr[-500:]}")


def _program(name: str) -> str:
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        raise RuntimeError(f"{name} is not installed beside this Python")
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _await_port(port: int) -> None:
    end_s, pause = time.monotonic() + 120.0, threading.Event()
    while time.monotonic() < end_s:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        pause.wait(0.2)
    raise RuntimeError("the SuperLink did not start")
