"""Bad input at the command line: the fault and its remedy are named, and nothing is lost."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_node.home import SiteHome
from client_node.store import SiteStore
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.registry import INVITE_TYPE
from coordinator.service import Coordinator
from deploy.cli import main as cli
from model_core.base import save_base
from model_core.nano import nano_base
from privacy.signing import Identity, open_statement, seal_statement
from privacy.store import open_engine
from tests.coordinator.fakes import SmallArtifacts
from tests.e2e.conftest import ROOT, watched_environment
from tests.e2e.recordings import tone, write_wav

pytestmark = [
    pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning"),
]

SETTINGS = CoordinatorSettings(public_host="127.0.0.1", public_port=0, admin_port=0)


@dataclasses.dataclass(frozen=True)
class Shell:
    """Runs `auricle` in this process, as a person and as a script would."""

    capsys: pytest.CaptureFixture[str]

    def does(self, *words: str | Path) -> dict[str, Any]:
        """What a command that must succeed prints."""
        status, told = self._run(*words, "--json")
        assert status == 0, told
        return told

    def fails(self, *words: str | Path) -> tuple[int, dict[str, str]]:
        """Exit status and error of a command that must fail, the same for person and script."""
        status, told = self._run(*words, "--json")
        error: dict[str, str] = told["error"]
        assert set(error) == {"code", "problem", "remedy"}
        assert cli.run([str(word) for word in words]) == status != 0
        shown = self.capsys.readouterr()
        assert "Traceback" not in shown.err
        for part in (f"Error: {error['problem']}", f"Remedy: {error['remedy']}", error["code"]):
            assert part in shown.err
        return status, error

    def _run(self, *words: str | Path) -> tuple[int, dict[str, Any]]:
        self.capsys.readouterr()
        status = cli.run([str(word) for word in words])
        told: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return status, told


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    save_base(nano_base(), folder)
    return folder


@pytest.fixture
def home(tmp_path: Path, shell: Shell, base: Path) -> SiteHome:
    made = SiteHome(tmp_path / "north")
    shell.does("site", "init", "north", "--home", made.root, "--base-folder", base)
    return made


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    made = CoordinatorHome.create(tmp_path / "coordinator", SETTINGS, now())
    running = Coordinator(made, SmallArtifacts())
    running.start()
    yield running
    running.stop()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def contents(root: Path) -> dict[str, str]:
    """Hash of every file under `root`."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def stored(home: SiteHome) -> list[str]:
    engine = open_engine(home.database_url)
    try:
        return [recording.text for recording in SiteStore(engine).recordings()]
    finally:
        engine.dispose()


def line(folder: Path, name: str, text: str, **more: str) -> dict[str, str]:
    """A good manifest line and its audio."""
    pitch_hz = 200.0 + int(hashlib.sha256(name.encode()).hexdigest()[:4], 16) / 100
    write_wav(folder / name, tone(pitch_hz))
    return {"audio": name, "text": text, "subject": f"of {name}"} | more


def manifest(folder: Path, *lines: dict[str, str]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in lines))
    return path


@pytest.mark.parametrize(
    ("fault", "code", "problem", "remedy"),
    [
        (
            "missing",
            "audio-missing",
            "line 2: audio file bad.wav does not exist",
            "correct the path",
        ),
        ("column", "manifest-column", "line 2: unknown column speaker", "use only the columns"),
        ("text", "manifest-text-empty", "line 2: the transcript (text) is empty", "transcript"),
        ("zero", "audio-empty", "line 2: audio file bad.wav is empty (0 bytes)", "record"),
    ],
)
def test_a_faulty_manifest_line(
    shell: Shell, home: SiteHome, tmp_path: Path, fault: str, code: str, problem: str, remedy: str
) -> None:
    first = manifest(tmp_path, line(tmp_path, "first.wav", "already there"))
    shell.does("site", "import", first, "--home", home.root)
    good, bad = line(tmp_path, "good.wav", "as it should be"), line(tmp_path, "bad.wav", "spoken")
    mended = dict(bad)
    match fault:
        case "missing":
            (tmp_path / "bad.wav").unlink()
        case "column":
            bad["speaker"] = "7"
        case "text":
            bad["text"] = "  "
        case "zero":
            (tmp_path / "bad.wav").write_bytes(b"")
    second = manifest(tmp_path, good, bad)
    status, error = shell.fails("site", "import", second, "--home", home.root)
    assert (status, error["code"]) == (31, code)
    assert problem in error["problem"]
    assert "nothing was changed" in error["problem"]
    assert remedy in error["remedy"]
    assert "import again" in error["remedy"]
    assert stored(home) == ["already there"]

    write_wav(tmp_path / "bad.wav", tone(700.0))  # the remedy works, and nothing was half done
    report = shell.does("site", "import", manifest(tmp_path, good, mended), "--home", home.root)
    assert report["new"] == 2
    assert sorted(stored(home)) == ["already there", "as it should be", "spoken"]


def test_a_base_with_a_wrong_checksum(
    shell: Shell, home: SiteHome, base: Path, tmp_path: Path
) -> None:
    altered = tmp_path / "altered"
    shutil.copytree(base, altered)
    weights = altered / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    site, coordinator = tmp_path / "south", tmp_path / "coordinator"
    for words in (
        ("site", "init", "south", "--home", site, "--base-folder", altered),
        ("coordinator", "init", "--home", coordinator, "--base-folder", altered),
    ):
        status, error = shell.fails(*words)
        assert (status, error["code"]) == (20, "base-checksum")
        assert str(altered) in error["problem"]
        assert "prepare" in error["remedy"]

    shutil.rmtree(altered)  # the remedy: the same commands work with the base made anew
    shutil.copytree(base, altered)
    assert shell.does("site", "init", "south", "--home", site, "--base-folder", altered)
    at = ("--home", coordinator, "--base-folder", altered)
    assert shell.does("coordinator", "init", *at)


def test_a_site_whose_base_was_altered_later(shell: Shell, home: SiteHome, tmp_path: Path) -> None:
    settings = home.settings.read_text()
    sha256 = next(row for row in settings.splitlines() if row.startswith("base_sha256"))
    home.settings.write_text(settings.replace(sha256, f'base_sha256 = "{"0" * 64}"'))
    before, rows = contents(home.root), stored(home)
    clip = write_wav(tmp_path / "clip.wav", tone(440.0))
    status, error = shell.fails("transcribe", clip, "--home", home.root)
    assert (status, error["code"]) == (20, "base-checksum")
    assert stored(home) == rows
    # SQLite folds its write-ahead log into the database when the last reader leaves.
    changed = {name for name, _ in contents(home.root).items() ^ before.items()}
    assert changed <= {"auricle.db", "auricle.db-shm", "auricle.db-wal"}


@pytest.mark.parametrize("listener", ["public", "admin"])
def test_a_coordinator_whose_port_is_in_use(tmp_path: Path, listener: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        settings = dataclasses.replace(SETTINGS, **{f"{listener}_port": port})
        home = CoordinatorHome.create(tmp_path / "coordinator", settings, now())
        before = contents(home.root)
        words = ["coordinator", "start", "--home", str(home.root), "--json"]
        done = subprocess.run(
            [sys.executable, "-m", "deploy.cli.main", *words],
            cwd=ROOT,
            env=watched_environment(tmp_path / "watch.log"),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            timeout=120,
        )
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (10, "port-in-use")
    assert str(port) in error["problem"]
    assert "stop the program that uses it" in error["remedy"]
    after = contents(home.root)
    assert {name: after[name] for name in before} == before


def test_a_page_whose_port_is_in_use(shell: Shell, home: SiteHome) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        status, error = shell.fails("site", "serve", "--home", home.root, "--port", port)
    assert (status, error["code"]) == (40, "port-in-use")
    assert port in error["problem"]
    assert "port" in error["remedy"]


def invite_from(coordinator: Coordinator, path: Path, **changes: str) -> Path:
    """An invite for north; with `changes`, one that another coordinator signed."""
    made = coordinator.operations.invite("north", 600, approve=True)
    if changes:
        signer = Identity.generate()
        envelope = open_invite(made, coordinator)
        fields = envelope | changes | {"coordinator_public_pem": signer.public.public_pem}
        made = seal_statement(json.dumps(fields).encode(), INVITE_TYPE, signer)
    path.write_bytes(made)
    return path


def open_invite(invite: bytes, coordinator: Coordinator) -> dict[str, Any]:
    trusted = (coordinator.operations.tools.identity.public,)
    fields: dict[str, Any] = json.loads(open_statement(invite, INVITE_TYPE, trusted))
    return fields


def test_wrong_ca_and_then_a_coordinator_that_is_gone(
    shell: Shell, home: SiteHome, coordinator: Coordinator, tmp_path: Path
) -> None:
    stranger = CoordinatorHome.create(tmp_path / "stranger", SETTINGS, now()).ca_file.read_text()
    before = contents(home.root)
    wrong = invite_from(coordinator, tmp_path / "wrong.invite", ca_pem=stranger)
    status, error = shell.fails("site", "join", wrong, "--home", home.root)
    assert (status, error["code"]) == (32, "coordinator-untrusted")
    assert "CA" in error["problem"]
    assert "compare the invite's CA" in error["remedy"]
    assert contents(home.root) == before

    right = invite_from(coordinator, tmp_path / "right.invite")
    shell.does("site", "join", right, "--home", home.root)
    pinned, before = home.ca.read_text(), contents(home.root)
    home.ca.write_text(stranger)
    status, error = shell.fails("site", "start", "--home", home.root)
    assert (status, error["code"]) == (32, "coordinator-untrusted")
    home.ca.write_text(pinned)

    port = coordinator.public_port
    coordinator.stop()
    status, error = shell.fails("site", "start", "--home", home.root)
    assert (status, error["code"]) == (32, "coordinator-unreachable")
    assert f":{port}" in error["problem"]
    assert "check that it runs" in error["remedy"]
    after = contents(home.root)
    assert {name: after[name] for name in before} == before


def test_joining_a_coordinator_that_cannot_be_reached(
    shell: Shell, home: SiteHome, coordinator: Coordinator, tmp_path: Path
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{closed.getsockname()[1]}"
        path = invite_from(coordinator, tmp_path / "far.invite", coordinator_url=url)
        before = contents(home.root)
        status, error = shell.fails("site", "join", path, "--home", home.root)
    assert (status, error["code"]) == (32, "coordinator-unreachable")
    assert url in error["problem"]
    assert "check that it runs" in error["remedy"]
    assert contents(home.root) == before


def test_a_job_asked_of_a_coordinator_that_does_not_run(shell: Shell, tmp_path: Path) -> None:
    settings = dataclasses.replace(SETTINGS, admin_port=1)
    home = CoordinatorHome.create(tmp_path / "coordinator", settings, now())
    status, error = shell.fails("round", "start", "--home", home.root)
    assert (status, error["code"]) == (42, "coordinator-not-running")
    assert "auricle coordinator start" in error["remedy"]
