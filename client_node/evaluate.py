"""Held-out evaluation at a site: is the release better than the base on its own recordings?

The base and a release, each without and with the site's terms as a hotword prompt (the baseline
that costs no training), and both on general recordings, to see what learning the terms has cost.
Only counts and rates come out; transcripts stay in this process.
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
    """The columns of one site; None where a column was not asked for or has nothing to show.

    Attributes:
        before: the base.
        prompted: the base with the terms as a prompt; needs terms.
        after: the release.
        after_prompted: the release with the terms as a prompt.
        general_before: the base on other people's recordings.
        general_after: the release on the same: has learning the terms cost anything else?
    """

    before: Score | None
    prompted: Score | None
    after: Score | None
    after_prompted: Score | None
    general_before: Score | None
    general_after: Score | None


@dataclasses.dataclass(frozen=True)
class Models:
    """What is compared: loaders of the base without and with the terms as prompt, and a release.

    `prompted` is None where there are no terms, `adapter` where nothing was released.
    """

    plain: LoadTranscriber
    prompted: LoadTranscriber | None
    adapter: bytes | None


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
    models: Models,
    held_out: Sequence[HeldOut],
    terms: Sequence[str],
    general: Sequence[HeldOut] = (),
    *,
    release_only: bool = False,
) -> Evaluation:
    """Score the base and a release, without and with the terms as prompt, on the same recordings.

    Models are loaded one at a time, so memory holds one. `release_only` leaves the base out. Raises
    like `score` and the loaders.
    """

    def column(
        load: LoadTranscriber | None, adapter: bytes | None, recordings: Sequence[HeldOut]
    ) -> Score | None:
        wanted = load is not None and recordings and not (release_only and adapter is None)
        return score(load(adapter), recordings, terms) if load and wanted else None

    if not held_out:
        raise EvaluationError(
            "no recording is marked as held out",
            remedy='import recordings with "split": "heldout" in the manifest',
        )
    released = models.plain if models.adapter is not None else None
    released_prompted = models.prompted if models.adapter is not None else None
    return Evaluation(
        before=column(models.plain, None, held_out),
        prompted=column(models.prompted, None, held_out),
        after=column(released, models.adapter, held_out),
        after_prompted=column(released_prompted, models.adapter, held_out),
        general_before=column(models.plain, None, general),
        general_after=column(released, models.adapter, general),
    )
