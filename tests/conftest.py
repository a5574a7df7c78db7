"""Fixtures of every folder: the two databases that Auricle keeps its state in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.faults.matrix import rows
from tests.postgres import NewDatabase, running_postgres

# `make test` tries the same examples each time, so that it judges the change and not the draw;
# the slow tests and the fault tests go on searching.
settings.register_profile("repeatable", derandomize=True)

ENGINES = ("sqlite", "postgresql")


@pytest.hookimpl(tryfirst=True)  # before -m looks at the markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `faults` the tests of other folders that docs/faults.md names."""
    matrix = set(rows())
    for item in items:
        file, _, name = item.nodeid.partition("::")
        if (file, name.partition("[")[0]) in matrix:
            item.add_marker("faults")


@pytest.fixture(scope="session")
def new_postgres() -> Iterator[NewDatabase]:
    """Makes empty databases on one PostgreSQL server for the whole run."""
    with running_postgres() as new_database:
        yield new_database


@pytest.fixture(params=ENGINES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each engine in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'auricle.db'}"
    new_database: NewDatabase = request.getfixturevalue("new_postgres")
    return new_database()
