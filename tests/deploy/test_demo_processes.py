"""The demo's processes: they end with the demo, however it ends, and their failures are told."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from deploy.demo.processes import Processes, ProcessFailedError, interrupt_on_signals

SLEEPER = [sys.executable, "-c", "import signal; print('up', flush=True); signal.pause()"]
PRINTS = "import json, sys; json.dump({}, sys.stdout); sys.exit({})"


def prints(value: object, status: int = 0) -> list[str]:
    return [sys.executable, "-c", PRINTS.format(value, status)]


@pytest.mark.parametrize("ending", ["return", "error", "interrupt"])
def test_every_process_is_gone_however_the_block_ends(tmp_path: Path, ending: str) -> None:
    running = []

    def block() -> None:
        with Processes(os.environ) as processes:
            running.extend(
                processes.start(name, SLEEPER, tmp_path / f"{name}.log").process for name in "ab"
            )
            if ending == "error":
                raise ValueError("no")
            if ending == "interrupt":
                raise KeyboardInterrupt

    if ending == "return":
        block()
    else:
        with pytest.raises((ValueError, KeyboardInterrupt)):
            block()
    assert len(running) == 2
    assert not any(psutil.pid_exists(process.pid) for process in running)


def test_a_signal_interrupts_even_where_it_was_ignored() -> None:
    import signal

    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.signal(number, signal.SIG_IGN)
        try:
            with pytest.raises(KeyboardInterrupt), interrupt_on_signals():
                signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
        finally:
            signal.signal(number, before)


def test_a_commands_object_is_returned() -> None:
    with Processes(os.environ) as processes:
        assert processes.run_json(prints({"job": "a"})) == {"job": "a"}
        both = processes.run_all({"x": prints({"n": 1}), "y": prints({"n": 2})})
    assert both == {"x": {"n": 1}, "y": {"n": 2}}


def test_a_failed_command_is_told_with_its_own_problem_and_remedy() -> None:
    error = {"error": {"code": "c", "problem": "the port is taken", "remedy": "free it"}}
    with Processes(os.environ) as processes:
        with pytest.raises(ProcessFailedError, match="the port is taken") as told:
            processes.run_json(prints(error, 3))
        with pytest.raises(ProcessFailedError):
            processes.run_all({"x": prints({"n": 1}), "y": prints(error, 3)})
    assert told.value.remedy == "free it"


def test_a_process_that_died_is_named_with_its_last_words(tmp_path: Path) -> None:
    died = [sys.executable, "-c", "print('disk is full'); raise SystemExit(7)"]
    with Processes(os.environ) as processes:
        processes.start("st-mary", died, tmp_path / "log").process.wait(30)
        with pytest.raises(ProcessFailedError, match=r"st-mary ended with status 7: disk is full"):
            processes.check_alive()
