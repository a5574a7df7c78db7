"""Fixtures of the fault tests."""

from __future__ import annotations

import pytest
import torch

from model_core.base import SpeechBase
from model_core.nano import nano_base


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano() -> SpeechBase:
    return nano_base()
