"""What transcribes at a site: always the verified active release, never a stand-in for it."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any, cast

import pytest
from torch import Tensor

from client_node.inference import SiteTranscriber
from client_node.model_store import ADAPTER_NAME, ModelStore, ReleaseError
from client_node.release_canary import ReleaseCanary
from model_core.errors import AdapterError, AudioError
from model_core.transcribe import Transcriber, Transcript
from tests.client_node.test_model_store import BASE, COORDINATOR, stage


class Loader:
    """Stands for model loading: a transcriber's text tells which adapter it was made from."""

    def __init__(self) -> None:
        self.loads = 0

    def __call__(self, adapter: bytes | None) -> Transcriber:
        self.loads += 1
        if adapter == b"does not fit":
            raise AdapterError("shapes differ", remedy="send one for this base")
        text = "base" if adapter is None else adapter.decode()

        class Named:
            def transcribe(self, samples: Tensor) -> Transcript:
                return Transcript(text, (), len(samples) / 16_000)

        return cast("Transcriber", Named())


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "releases", [COORDINATOR.public], BASE)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    path = tmp_path / "clip.wav"
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
        file.writeframes(bytes(2 * 8_000))
    return path


def made_by(transcriber: SiteTranscriber, clip: Path) -> tuple[str, str | None]:
    made = transcriber.transcribe(clip)
    return made.transcript.text, made.release


def test_a_new_release_and_a_rollback_take_effect_at_the_next_recording(
    store: ModelStore, clip: Path
) -> None:
    loader = Loader()
    transcriber = SiteTranscriber(store, loader)
    assert made_by(transcriber, clip) == ("base", None)
    stage(store, "r1", b"one")
    assert made_by(transcriber, clip) == ("base", None)
    store.activate("r1")
    assert made_by(transcriber, clip) == ("one", "r1")
    assert made_by(transcriber, clip) == ("one", "r1")
    assert loader.loads == 2
    store.rollback()
    assert made_by(transcriber, clip) == ("base", None)


def test_an_altered_release_is_refused_and_the_base_does_not_step_in(
    store: ModelStore, clip: Path, tmp_path: Path
) -> None:
    loader = Loader()
    transcriber = SiteTranscriber(store, loader)
    stage(store, "r1", b"one")
    store.activate("r1")
    (tmp_path / "releases" / "r1" / ADAPTER_NAME).write_bytes(b"two")
    for attempt in (transcriber.warm_up, lambda: transcriber.transcribe(clip)):
        with pytest.raises(ReleaseError):
            attempt()
    assert loader.loads == 0


def test_canary_refuses_an_adapter_that_does_not_fit_the_base(
    store: ModelStore, tmp_path: Path
) -> None:
    stage(store, "r1", b"does not fit")
    with pytest.raises(AdapterError):
        store.activate("r1", ReleaseCanary(Loader(), store.active, tmp_path / "canary.json"))
    assert store.active_id is None


def test_bad_audio_is_reported_before_any_model_is_loaded(
    store: ModelStore, tmp_path: Path
) -> None:
    loader = Loader()
    empty = tmp_path / "empty.wav"
    empty.touch()
    transcriber: Any = SiteTranscriber(store, loader)
    for path in (empty, tmp_path / "missing.wav"):
        with pytest.raises(AudioError):
            transcriber.transcribe(path)
    assert loader.loads == 0
