"""The whole chain with the real tiny.en: people are written down, noise is not."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from client_node.live.events import Final, Partial
from client_node.live.hearing import SiteEars
from client_node.live.pcm import RATE_HZ
from client_node.live.session import LiveSession, LiveSettings
from client_node.live.voice import silero_network
from model_core.audio import read_audio
from model_core.base import SpeechBase
from model_core.evaluate import word_error_rate
from model_core.transcribe import Transcriber
from model_core.upcycle import MixtureConfig
from model_core.weights import load_whisper, resolve_checkpoint
from tests.client_node.live.sounds import no_speech

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("AURICLE_SHARED", REPOSITORY.parent / "shared"))
NAMES = ("agent-alreadyon", "agent-incorrect", "conf-onlyone")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared,
    pytest.mark.skipif(
        not (SHARED / "speech").is_dir(),
        reason=f"REAL SPEECH NOT TESTED: no {SHARED / 'speech'}; set AURICLE_SHARED to its folder",
    ),
]


@pytest.fixture(scope="module")
def ears():
    torch.set_num_threads(1)
    whisper = load_whisper(resolve_checkpoint(None))
    base = SpeechBase(whisper.model, whisper.tokenizer, whisper.rules, MixtureConfig(), "")
    transcriber = Transcriber(base)
    return SiteEars(lambda: (None, transcriber))


def play(ears, samples_N):
    session, ear, events = LiveSession(silero_network(), LiveSettings()), ears.listen(()), []
    silence_N = np.zeros(RATE_HZ, np.float32)
    samples_N = np.concatenate([silence_N, samples_N, silence_N])
    for at in range(0, len(samples_N), 1280):
        events += session.push(samples_N[at : at + 1280])
        while (job := session.next_job()) is not None:
            heard = ear.final(job.samples_N) if job.final else ear.draft(job.samples_N)
            events += session.heard(job, heard)
    return events


def test_people_are_written_down_as_from_a_file(ears):
    rows = map(json.loads, (SHARED / "speech" / "en.jsonl").read_text().splitlines())
    texts = {Path(row["audio"]).stem: row["text"] for row in rows}
    heard = []
    for name in NAMES:
        events = play(ears, read_audio(SHARED / "speech" / "en" / f"{name}.flac").numpy())
        heard.append(" ".join(e.text for e in events if isinstance(e, Final)))
        assert any(isinstance(e, Partial) for e in events)
        words = [w for e in events if isinstance(e, Final) for w in e.words]
        assert all(a.start_s <= b.start_s for a, b in itertools.pairwise(words))
    assert word_error_rate([texts[name] for name in NAMES], heard) <= 0.1


@pytest.mark.parametrize("name", no_speech())
def test_what_is_no_speech_writes_nothing(ears, name):
    assert play(ears, no_speech()[name]) == []
