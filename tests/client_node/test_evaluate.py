"""Held-out evaluation: the columns, what they count, and that no text comes out."""

from __future__ import annotations

import dataclasses
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
from torch import Tensor

from client_node.evaluate import EvaluationError, HeldOut, Models, evaluate, score
from model_core.transcribe import Transcriber, Transcript

SAID = ["take metoprolol at night", "give metoprolol now", "no drug today"]
TERMS = ["metoprolol"]


def hearing(*texts: str) -> Transcriber:
    """A transcriber that hears these texts, in order."""

    class Hearing:
        def transcribe_many(self, recordings: list[Tensor]) -> list[Transcript]:
            assert len(recordings) == len(texts)
            return [Transcript(text, (), 1.0) for text in texts]

    return cast("Transcriber", Hearing())


@pytest.fixture
def held_out(tmp_path: Path) -> list[HeldOut]:
    items = []
    for number, text in enumerate(SAID):
        path = tmp_path / f"{number}.wav"
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(bytes(2 * 1_600))
        items.append(HeldOut(path, text))
    return items


def ticks() -> Iterator[float]:
    yield from (10.0, 12.5)


def test_score_counts_terms_and_word_errors(held_out: list[HeldOut]) -> None:
    clock = ticks()
    heard = hearing("take metoprolol at night", "give metro pole now", "no drug today")
    result = score(heard, held_out, TERMS, clock=lambda: next(clock))
    assert (result.terms_right, result.terms_total) == (1, 2)
    assert result.term_accuracy == 0.5
    assert result.wer == pytest.approx(2 / 10)  # one substitution, one insertion, ten words said
    assert result.recordings == 3
    assert result.seconds == 2.5


def test_each_column_comes_from_its_own_model(held_out: list[HeldOut]) -> None:
    def load(adapter: bytes | None) -> Transcriber:
        return hearing(*SAID) if adapter == b"release" else hearing("", "", "")

    def load_prompted(adapter: bytes | None) -> Transcriber:
        return hearing(SAID[0], "", "") if adapter is None else hearing(SAID[0], SAID[1], "")

    result = evaluate(Models(load, load_prompted, b"release"), held_out, TERMS, held_out)
    right = {
        name: score and (score["terms_right"], score["wer"])
        for name, score in dataclasses.asdict(result).items()
    }
    assert right == {
        "before": (0, 1.0),
        "prompted": (1, pytest.approx(0.6)),
        "after": (2, 0.0),
        "after_prompted": (2, pytest.approx(0.3)),
        "general_before": (0, 1.0),
        "general_after": (2, 0.0),
    }
    assert "metoprolol" not in json.dumps(dataclasses.asdict(result))


def test_without_terms_release_or_general_there_is_no_such_column(
    held_out: list[HeldOut],
) -> None:
    result = evaluate(Models(lambda _: hearing(*SAID), None, None), held_out, [])
    assert result.before is not None
    assert result.before.term_accuracy is None
    others = dataclasses.asdict(result) | {"before": None}
    assert set(others.values()) == {None}


def test_release_only_leaves_the_base_out(held_out: list[HeldOut]) -> None:
    models = Models(lambda _: hearing(*SAID), None, b"release")
    result = evaluate(models, held_out, TERMS, held_out, release_only=True)
    assert result.before is result.prompted is result.general_before is None
    assert result.after is not None
    assert result.general_after is not None


def test_nothing_held_out_is_said_not_scored_as_perfect() -> None:
    with pytest.raises(EvaluationError):
        score(hearing(), [], TERMS)
    with pytest.raises(EvaluationError):
        evaluate(Models(lambda _: hearing(), None, None), [], TERMS)
