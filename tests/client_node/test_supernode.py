"""How long the SuperNode's process waits, by a clock that moves only when it sleeps."""

from __future__ import annotations

import types

from client_node.supernode import ANSWER_POLL_S, held_open, paced_sleep


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0
        self.slept_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, duration_s: float) -> None:
        self.slept_s.append(round(duration_s, 6))
        self.now_s += duration_s


def test_a_question_that_was_held_open_is_asked_again_at_once() -> None:
    clock = Clock()
    pause = paced_sleep(0.25, clock, clock.sleep)
    clock.now_s += 10.0  # held by the coordinator
    pause(3.0)
    assert clock.slept_s == [0.0]


def test_a_coordinator_that_holds_nothing_is_asked_at_the_sites_pace() -> None:
    clock = Clock()
    pause = paced_sleep(0.25, clock, clock.sleep)
    for _ in range(3):
        clock.now_s += 0.05
        pause(3.0)
    assert clock.slept_s == [0.2, 0.2, 0.2]


def test_the_workers_answer_is_looked_for_often() -> None:
    clock = Clock()
    pause = paced_sleep(0.25, clock, clock.sleep)
    pause(0.5)
    assert clock.slept_s == [ANSWER_POLL_S]


def test_a_task_is_handed_out_as_soon_as_it_is_there_or_not_at_all() -> None:
    clock = Clock()
    tokens = ["", "", "token", ""]

    def acquire(_request: object, _state: object) -> types.SimpleNamespace:
        return types.SimpleNamespace(token=tokens.pop(0) if tokens else "")

    ask = held_open(acquire, 1.0, clock, clock.sleep)
    assert ask(None, None).token == "token"
    assert clock.now_s < 100.1
    assert ask(None, None).token == ""
    assert clock.now_s < 101.2
