"""Batches of concurrent callers: each gets its own, like goes with like, a fault stays alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from client_node.batcher import MAX_BATCH, MAX_BATCH_S, Batcher
from model_core.audio import RATE_HZ
from model_core.transcribe import Transcript


class Model:
    """Tells each clip's length; waits at a gate, so that a test decides what has come by then."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def transcribe_many(
        self, recordings: Sequence[Tensor], *, words: bool = False
    ) -> list[Transcript]:
        self.batches.append([len(clip) for clip in recordings])
        self.started.release()
        assert self.gate.acquire(timeout=30)
        if any(len(clip) == 13 for clip in recordings):
            raise ValueError("13")
        return [Transcript(f"{len(clip)} {words}", (), 0.0) for clip in recordings]

    def open(self) -> None:
        self.gate.release(1000)


@pytest.fixture
def batcher() -> Iterator[Batcher]:
    batcher = Batcher()
    yield batcher
    batcher.close()


def ask_while_busy(
    batcher: Batcher, model: Model, requests: Sequence[tuple[object, int, bool]]
) -> list[str]:
    """Ask all while the model is busy with a first clip; then let it go on."""
    with ThreadPoolExecutor(len(requests) + 1) as pool:
        first = pool.submit(batcher.hear, model, "first", [torch.zeros(1)], words=False)
        assert model.started.acquire(timeout=30)
        asked = []
        for asks, length, words in requests:
            asked.append(pool.submit(batcher.hear, model, asks, [torch.zeros(length)], words=words))
            while sum(len(entry.clip) > 1 for entry in batcher._waiting) < len(asked):
                pass
        model.open()
        first.result(30)
        return [str(each.exception(30) or each.result(30)[0].text) for each in asked]


def test_what_waits_goes_together_and_each_caller_gets_its_own(batcher: Batcher) -> None:
    model = Model()
    requests = [("a", length, False) for length in range(100, 120)]
    told = ask_while_busy(batcher, model, requests)
    assert told == [f"{length} False" for length in range(100, 120)]
    assert [len(batch) for batch in model.batches] == [1, MAX_BATCH, 20 - MAX_BATCH]


def test_only_like_goes_with_like(batcher: Batcher) -> None:
    model = Model()
    long = 6 * RATE_HZ
    requests = [("a", 100, False), ("b", 101, False), ("a", 102, True), ("a", long, False)]
    requests += [("a", 103, False)]
    told = ask_while_busy(batcher, model, requests)
    assert told == ["100 False", "101 False", "102 True", f"{long} False", "103 False"]
    assert sorted(model.batches[1:]) == [[100, 103], [101], [102], [long]]


def test_a_batch_holds_a_bounded_sound(batcher: Batcher) -> None:
    model = Model()
    ask_while_busy(batcher, model, [("a", 27 * RATE_HZ, False)] * 5)
    assert [len(batch) for batch in model.batches] == [1, 2, 2, 1]
    assert all(sum(batch) <= MAX_BATCH_S * RATE_HZ for batch in model.batches)


def test_a_fault_is_its_own_callers(batcher: Batcher) -> None:
    model = Model()
    told = ask_while_busy(batcher, model, [("a", 12, False), ("a", 13, False), ("a", 14, False)])
    assert told == ["12 False", "13", "14 False"]


def test_closing_finishes_what_waits_and_takes_no_more() -> None:
    batcher, model = Batcher(), Model()
    model.open()
    assert batcher.hear(model, "a", [torch.zeros(5)], words=True)[0].text == "5 True"
    batcher.close()
    with pytest.raises(RuntimeError):
        batcher.hear(model, "a", [torch.zeros(5)], words=False)
