from __future__ import annotations

import pytest

from coordinator.job import JobLoop
from coordinator.local_link import LocalLink
from tests.coordinator.fakes import Federation, request


@pytest.fixture
def federation(tmp_path):
    made = Federation(tmp_path)
    yield made
    made.engine.dispose()


def test_job_runs_to_a_release(federation):
    job = federation.operations.submit(request())
    link = LocalLink(federation.sites)
    JobLoop(job, federation.tools, link).run(federation.clock.wait)
    link.close()
    print(federation.operations.status(job))
    assert federation.operations.status(job).state == "released"
