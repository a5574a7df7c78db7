"""Held-out evaluation at a site: is the release better than the base on its own recordings?

Three columns: `before` (the base), `prompted` (the base given the site's terms as a hotword
prompt, the baseline that costs no training) and `after` (a release). Only counts and rates come
out; transcripts stay in this process.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from client_node.errors import SiteError
from client_node.inference import LoadTranscriber
from model_core.audio import read_audio
from model_core.evaluate import term_accuracy, word_error_rate
from model_core.transcribe import Transcriber


class EvaluationError(SiteError):
    """There is nothing to evaluate on."""

    code = "evaluation-empty"
    exit_code = 34


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A recording never trained on, and what is said in it."""

    audio: Path
    text: str


@dataclasses.dataclass(frozen=True)
class Score:
    """How well one model did. `wer` is word errors per reference word, in [0, ∞).

    `terms_right` of `terms_total` counts each occurrence of a term in a reference once.
    """

    recordings: int
    wer: float
    terms_right: int
    terms_total: int
    seconds: float

    @property
    def term_accuracy(self) -> float | None:
        """Share of term occurrences recognised; None where the references hold no term."""
        return self.terms_right / self.terms_total if self.terms_total else None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The columns of one site; `prompted` needs terms, `after` needs a release."""

    before: Score
    prompted: Score | None
    after: Score | None


def score(
    transcriber: Transcriber,
    held_out: Sequence[HeldOut],
    terms: Sequence[str],
    clock: Callable[[], float] = time.monotonic,
) -> Score:
    """Transcribe every held-out recording and compare. Raises AudioError, EvaluationError."""
    if not held_out:
        raise EvaluationError(
            "no recording is marked as held out",
            remedy='import recordings with "split": "heldout" in the manifest',
        )
    started = clock()
    heard = [
        transcript.text
        for transcript in transcriber.transcribe_many([read_audio(item.audio) for item in held_out])
    ]
    said = [item.text for item in held_out]
    right = term_accuracy(said, heard, terms)
    return Score(
        recordings=len(held_out),
        wer=word_error_rate(said, heard),
        terms_right=right.right,
        terms_total=right.total,
        seconds=clock() - started,
    )


def evaluate(
    load: LoadTranscriber,
    load_prompted: LoadTranscriber | None,
    adapter: bytes | None,
    held_out: Sequence[HeldOut],
    terms: Sequence[str],
) -> Evaluation:
    """Score the base, the prompted base and a release's adapter on the same recordings.

    Models are loaded one at a time, so memory holds one. Raises like `score` and the loaders.
    """
    return Evaluation(
        before=score(load(None), held_out, terms),
        prompted=score(load_prompted(None), held_out, terms) if load_prompted else None,
        after=score(load(adapter), held_out, terms) if adapter is not None else None,
    )
