"""Fixtures of the fault tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model_core.base import SpeechBase
from model_core.nano import nano_base
from privacy.signing import Identity
from tests.client_node.fake_https import Authority, FakeCoordinator
from tests.client_node.harness import Coordinator, Site


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nano() -> SpeechBase:
    return nano_base()


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(Identity.generate())


@pytest.fixture
def site(tmp_path: Path, nano: SpeechBase, coordinator: Coordinator) -> Iterator[Site]:
    made = Site(tmp_path / "north", nano, coordinator)
    yield made
    made.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def fake(authority: Authority) -> Iterator[FakeCoordinator]:
    server = FakeCoordinator(authority, Identity.generate())
    yield server
    server.close()
