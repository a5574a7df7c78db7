"""The demo's operating-system processes: started in their own groups, and always stopped.

Each role is the real `auricle` command in a process of its own, as it would be started by hand.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from privacy.errors import AuricleError

STOP_GRACE_S = 30.0  # a site ends the round that it is in
LOG_TAIL_LINES = 12


class ProcessFailedError(AuricleError):
    """A command of the demo ended with a failure of its own."""

    code = "demo-process-failed"
    exit_code = 60


@dataclasses.dataclass(frozen=True)
class Running:
    """A long-lived process and where its output goes."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path


def auricle(*arguments: str | Path) -> list[str]:
    """The argument vector that runs `auricle` with this interpreter."""
    return [sys.executable, "-m", "deploy.cli.main", *map(str, arguments)]


class Processes:
    """Context manager that owns every process of a demo.

    Leaving the block, by success, error or Ctrl-C, sends SIGTERM to every process group, waits
    `STOP_GRACE_S` and kills what is left, so that no orphan holds a port or a database.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        # Sites share the cores: more than a thread each would only contend.
        self._environment = {**environment, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        self._running: list[Running] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self, name: str, arguments: Sequence[str], log: Path) -> Running:
        """Start a long-lived process with its output appended to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as sink:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
        running = Running(name, process, log)
        self._running.append(running)
        return running

    def run_json(self, arguments: Sequence[str], *, threads: int = 1) -> dict[str, Any]:
        """Run a short command with `--json` and return the object that it printed.

        `threads` is for a command that runs alone and computes.

        Raises:
            ProcessFailedError: with the command's own problem and remedy.
        """
        done = subprocess.run(
            [*arguments, "--json"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**self._environment, "OMP_NUM_THREADS": str(threads)},
            check=False,
            start_new_session=True,
        )
        printed = _last_object(done.stdout) or _last_object(done.stderr)
        if done.returncode == 0 and printed is not None:
            return printed
        fault = (printed or {}).get("error", {})
        tail = done.stderr.decode(errors="replace").strip().splitlines()[-LOG_TAIL_LINES:]
        raise ProcessFailedError(
            f"`auricle {' '.join(arguments[3:])}` failed: {fault.get('problem') or tail}",
            remedy=fault.get("remedy", "run the command by hand to see more"),
        )

    def run_all(self, commands: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Any]]:
        """Run several short commands at once; the first failure is raised after all ended."""
        results: dict[str, dict[str, Any]] = {}
        failures: list[AuricleError] = []

        def one(name: str, arguments: Sequence[str]) -> None:
            try:
                results[name] = self.run_json(arguments)
            except AuricleError as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=item) for item in commands.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        return results

    def check_alive(self) -> None:
        """Raise ProcessFailedError naming the first process that has ended."""
        for running in self._running:
            status = running.process.poll()
            if status is not None:
                lines = running.log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                raise ProcessFailedError(
                    f"{running.name} ended with status {status}: " + " | ".join(lines),
                    remedy=f"read {running.log}",
                )

    def stop(self) -> None:
        """Stop every process group; safe to call twice.

        The first one started goes last: a site ends at once while its coordinator still answers,
        and only after long tries when it does not.
        """
        for wave in (self._running[1:], self._running[:1]):
            for running in wave:
                _signal_group(running.process, signal.SIGTERM)
            for running in wave:
                try:
                    running.process.wait(STOP_GRACE_S)
                except subprocess.TimeoutExpired:
                    _signal_group(running.process, signal.SIGKILL)
                    running.process.wait()
        self._running.clear()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _last_object(output: bytes) -> dict[str, Any] | None:
    """The last line of `output` that is a JSON object, or the whole as one."""
    text = output.decode(errors="replace")
    for candidate in (text, *reversed(text.splitlines())):
        try:
            value = json.loads(candidate)
        except ValueError:
            continue
        if isinstance(value, dict):
            return value
    return None


@contextlib.contextmanager
def interrupt_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT both raise KeyboardInterrupt, so that both end through the same path.

    SIGINT too: a shell without job control starts its background commands with it ignored.
    """

    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGINT)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
