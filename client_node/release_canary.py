"""A site's own trial of a release before it serves: a few recordings whose texts are known.

The release must fit the base, leave no recording empty that the present model hears, not repeat
itself, keep its word error rate under a limit, and do no worse than what serves now by more than a
margin. What was measured stays here; the coordinator learns that the canary refused, and no more.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor

from client_node.errors import SiteError
from client_node.home import write_private
from client_node.inference import LoadTranscriber
from client_node.manifest import read_manifest
from client_node.model_store import VerifiedRelease
from client_node.release_duty import CanaryError
from model_core.audio import read_audio
from model_core.errors import AudioError
from model_core.evaluate import normalise, word_error_rate
from model_core.guards import MOST_COMPRESSION, compression_ratio, runs_away

MOST_RECORDINGS = 100  # a trial holds up the site's next answer
_REMEDY = (
    "the present model goes on serving; see `auricle site releases`, and `auricle site activate` "
    "if the release is wanted all the same"
)


class CanarySetError(SiteError):
    """A canary set cannot be used: no words, too many recordings, or a file that is not one."""

    code = "canary-invalid"
    exit_code = 35


@dataclasses.dataclass(frozen=True)
class CanaryRecording:
    """One recording of the set. `subject` lets a withdrawal of consent find it."""

    audio: str
    audio_sha256: str
    text: str
    subject: str


@dataclasses.dataclass(frozen=True)
class CanarySet:
    """A site's canary set.

    Attributes:
        max_wer: largest word error rate of a release that may serve, in (0, ∞).
        margin: by how much a release's word error rate may exceed the present model's, ≥ 0.
    """

    max_wer: float
    margin: float
    recordings: tuple[CanaryRecording, ...]

    @classmethod
    def from_manifest(cls, manifest: Path, max_wer: float, margin: float) -> CanarySet:
        """The consenting recordings of a manifest. Raises ManifestError and CanarySetError."""
        rows = [row for row in read_manifest(manifest) if row.consent]
        recordings = tuple(
            CanaryRecording(str(row.audio.absolute()), _sha256(row.audio), row.text, row.subject)
            for row in rows
        )
        if not any(normalise(one.text) for one in recordings):
            raise _bad_set("no recording with consent has a word in its text")
        if len(recordings) > MOST_RECORDINGS:
            raise _bad_set(f"it has {len(recordings)} recordings; at most {MOST_RECORDINGS}")
        if not (max_wer > 0 and margin >= 0):
            raise _bad_set("the limits are out of range")
        return cls(max_wer, margin, recordings)

    @classmethod
    def load(cls, path: Path) -> CanarySet | None:
        """The set kept in a home; None where there is none. Raises CanarySetError."""
        try:
            fields = json.loads(path.read_bytes())
            recordings = tuple(CanaryRecording(**one) for one in fields.pop("recordings"))
            return cls(**fields, recordings=recordings)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise _bad_set(f"{path} cannot be read: {type(error).__name__}") from error

    def save(self, path: Path) -> None:
        """Keep the set, replacing an earlier one whole."""
        write_private(path, json.dumps(dataclasses.asdict(self), ensure_ascii=False).encode())


def forget_subject(path: Path, subject: str) -> int:
    """Take a subject's recordings out of the set; returns how many there were.

    A set that is left without any goes as a whole. Raises CanarySetError.
    """
    kept = CanarySet.load(path)
    if kept is None:
        return 0
    others = tuple(one for one in kept.recordings if one.subject != subject)
    if others:
        dataclasses.replace(kept, recordings=others).save(path)
    else:
        path.unlink()
    return len(kept.recordings) - len(others)


@dataclasses.dataclass(frozen=True)
class ReleaseCanary:
    """The trial, as `ModelStore.activate` runs it.

    Attributes:
        load: makes a transcriber of a release, or of the base.
        present: what serves now.
        path: of the set; read at each trial. Without one a release must only fit the base.
    """

    load: LoadTranscriber
    present: Callable[[], VerifiedRelease | None]
    path: Path

    def __call__(self, candidate: VerifiedRelease) -> None:
        """Raises CanaryError for what the set shows; what model_core raises for a misfit."""
        trial = self.load(candidate.adapter)
        chosen = CanarySet.load(self.path)
        if chosen is None:
            return
        clips = [_clip(one) for one in chosen.recordings]
        heard = [each.text for each in trial.transcribe_many(clips)]
        present = self.present()
        now = self.load(None if present is None else present.adapter)
        before = [each.text for each in now.transcribe_many(clips)]
        judge(chosen, heard, before)


def judge(chosen: CanarySet, heard: Sequence[str], before: Sequence[str]) -> None:
    """Compare what a release heard with the texts and with what the present model hears.

    Raises CanaryError: "canary-empty", "canary-looping", "canary-wer" or "canary-worse".
    """
    texts = [one.text for one in chosen.recordings]
    lost = sum(bool(old) and not new for old, new in zip(before, heard, strict=True))
    if lost:
        raise _refusal("canary-empty", f"hears nothing in {lost} recordings that are heard now")
    if looping := sum(is_looping(new) for new in heard):
        raise _refusal("canary-looping", f"repeats itself in {looping} recordings")
    wer, wer_before = word_error_rate(texts, heard), word_error_rate(texts, before)
    if wer > chosen.max_wer:
        raise _refusal("canary-wer", f"has a word error rate of {wer:.3f}, over {chosen.max_wer:g}")
    if wer > wer_before + chosen.margin:
        raise _refusal(
            "canary-worse",
            f"has a word error rate of {wer:.3f}; what serves now has {wer_before:.3f}, and the "
            f"margin is {chosen.margin:g}",
        )


def is_looping(text: str) -> bool:
    """Whether a text ends in the same phrase again and again, or is mostly repetition."""
    numbers: dict[str, int] = {}
    ids = [numbers.setdefault(word, len(numbers)) for word in normalise(text).split()]
    return runs_away(ids) or compression_ratio(text) > MOST_COMPRESSION


def _clip(one: CanaryRecording) -> Tensor:
    """Samples of a recording that is still the one that was chosen. Raises CanaryError."""
    path = Path(one.audio)
    try:
        if _sha256(path) != one.audio_sha256:
            raise _refusal("canary-changed", "could not be tried: a recording has changed")
        return read_audio(path)
    except (OSError, AudioError) as error:
        problem = "could not be tried: a recording cannot be read"
        raise _refusal("canary-unreadable", problem) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _refusal(finding: str, problem: str) -> CanaryError:
    return CanaryError(finding, f"the release {problem}", remedy=_REMEDY)


def _bad_set(problem: str) -> CanarySetError:
    return CanarySetError(
        f"the canary set cannot be used: {problem}",
        remedy="choose another with `auricle site canary set MANIFEST`",
    )
