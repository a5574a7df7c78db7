"""Real speech through the service: word times, batches, and OpenAI's client on both servers."""

from __future__ import annotations

import difflib
import itertools
import json
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from torch import Tensor

from client_node.batcher import Batcher
from model_core.audio import RATE_HZ, read_audio
from model_core.base import SpeechBase, make_base
from model_core.evaluate import normalise
from model_core.long_form import transcribe_long
from model_core.transcribe import Transcriber, Transcript
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint
from model_core.words import Word
from tests.client_node.http_harness import serving, site_service

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AURICLE_SHARED", REPOSITORY.parent / "shared"))
CLIPS = 20
PAUSE_S = 0.3
pytestmark = [
    pytest.mark.shared,
    pytest.mark.slow,
    pytest.mark.skipif(
        not (SHARED / "speech").is_dir(),
        reason=f"REAL SPEECH NOT TESTED: no {SHARED / 'speech'}; set AURICLE_SHARED to its folder",
    ),
]


@dataclass(frozen=True)
class Joined:
    """Samples in memory, as `transcribe_long` reads them."""

    joined: Tensor

    @property
    def samples(self) -> int:
        return len(self.joined)

    def read(self, start: int, stop: int) -> Tensor:
        return self.joined[start:stop]


@pytest.fixture(scope="module")
def base() -> SpeechBase:
    return make_base(load_whisper(resolve_checkpoint(None)), MixtureConfig())


@pytest.fixture(scope="module")
def paths() -> list[Path]:
    lines = (SHARED / "speech" / "en.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if 1.5 < row["duration_s"] < 8]
    return [SHARED / "speech" / row["audio"] for row in rows[:CLIPS]]


@pytest.fixture(scope="module")
def alone(base: SpeechBase, paths: list[Path]) -> list[tuple[Tensor, Transcript]]:
    """Each clip, and what is heard in it by itself."""
    transcriber = Transcriber(base)
    clips = [read_audio(path) for path in paths]
    return [(clip, transcriber.transcribe(clip, words=True)) for clip in clips]


def words_of(transcript: Transcript) -> list[Word]:
    return [word for segment in transcript.segments for word in segment.words]


def test_words_of_a_concatenation_are_where_each_clip_put_them(
    base: SpeechBase, alone: list[tuple[Tensor, Transcript]]
) -> None:
    transcriber = Transcriber(base)
    silence = torch.zeros(int(PAUSE_S * RATE_HZ))
    joined = torch.cat([part for clip, _ in alone for part in (clip, silence)])
    lengths = [len(clip) + len(silence) for clip, _ in alone]
    starts_s = [0.0, *(n / RATE_HZ for n in itertools.accumulate(lengths))]
    said = [
        (normalise(word.text), word.start_s + start_s)
        for (_, transcript), start_s in zip(alone, starts_s, strict=False)
        for word in words_of(transcript)
    ]

    def hear(clips: Any, words: bool) -> list[Transcript]:
        return transcriber.transcribe_many(clips, words=words)

    segments = transcribe_long(Joined(joined), hear, transcriber.tokenizer, words=True)
    heard = [(normalise(w.text), w.start_s) for segment in segments for w in segment.words]
    matcher = difflib.SequenceMatcher(None, [w for w, _ in said], [w for w, _ in heard], False)
    errors_s = [
        abs(said[block.a + i][1] - heard[block.b + i][1])
        for block in matcher.get_matching_blocks()
        for i in range(block.size)
    ]
    assert len(errors_s) >= 0.9 * len(said)
    assert abs(len(heard) - len(said)) <= 0.05 * len(said)
    assert statistics.mean(errors_s) <= 0.1


def test_first_words_begin_where_the_sound_does(alone: list[tuple[Tensor, Transcript]]) -> None:
    errors_s = []
    for clip, transcript in alone:
        level = clip.unfold(0, 160, 160).square().mean(-1).sqrt()
        onset_s = int((level > 0.05 * level.max()).nonzero()[0]) / 100
        errors_s.append(abs(words_of(transcript)[0].start_s - onset_s))
    assert statistics.mean(errors_s) <= 0.1


def test_a_batch_changes_no_text(base: SpeechBase, alone: list[tuple[Tensor, Transcript]]) -> None:
    transcriber, batcher = Transcriber(base), Batcher()
    together = batcher.hear(transcriber, "same", [clip for clip, _ in alone], words=False)
    batcher.close()
    assert [each.text for each in together] == [each.text for _, each in alone]


@pytest.fixture(scope="module")
def both(base: SpeechBase) -> Iterator[dict[str, str]]:
    """URLs of our service and of faster-whisper's, over the same weights."""
    pytest.importorskip("faster_whisper", reason="THE PEER IS NOT TESTED: no faster-whisper")
    from benchmarks.transcribe_servers import peer_app

    with site_service(base, aliases=["whisper-1"]) as ours, serving(peer_app(1)) as peer:
        yield {"ours": ours, "peer": peer}


def shape(value: Any) -> Any:
    """Keys and types of an answer; a list has the shape of its first."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return "number" if isinstance(value, int | float) else type(value).__name__


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"response_format": "verbose_json"},
        {"response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]},
    ],
    ids=str,
)
def test_the_same_calls_get_the_same_shapes_from_both(
    both: dict[str, str], paths: list[Path], options: dict[str, Any]
) -> None:
    shapes = {}
    for name, url in both.items():
        with openai.OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            answer = client.audio.transcriptions.create(model="whisper-1", file=paths[0], **options)
            assert answer.text
            shapes[name] = shape(answer.model_dump(exclude_unset=True))
    # What we tell beyond OpenAI's fields, as docs/api.md says.
    if options:
        assert shapes["ours"].pop("release") == "NoneType"
    for word in shapes["ours"].get("words", []):
        assert word.pop("confidence") == "number"
    assert shapes["ours"] == shapes["peer"]
