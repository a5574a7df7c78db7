"""Small updates through the real agents and the real job loop."""

from __future__ import annotations

import numpy as np
import pytest

from coordinator.aggregate import unpack
from privacy.errors import PlanError
from privacy.update_encoding import decode
from tests.coordinator.fakes import request
from tests.e2e.secure_federation import SecureFederation

SGD = {"name": "sgd", "learning_rate": 1.0, "schedule": "constant"}
NAMES = ("east", "north", "south")


@pytest.fixture
def federation(tmp_path):
    made = SecureFederation(tmp_path, NAMES)
    yield made
    made.close()


def submit(federation, **changes):
    fields = {"rounds": 1, "optimiser": SGD, "deadline_s": 1.0}
    return federation.operations.submit(request(**(fields | changes)))


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_the_release_is_the_step_by_what_was_sent_and_costs_the_same(federation, encoding):
    plain = submit(federation)
    federation.run(plain)
    for site in federation.sites.values():
        site.trainer.trained.clear()
    job = submit(federation, update_encoding=encoding)
    assert federation.run(job).state == "released"
    plan = federation.tools.jobs.load(job).plan
    left = {
        site: reply
        for site, order, reply in federation.link.carried
        if reply.kind == "update" and f'"{job}"' in _inside(reply)
    }
    assert set(left) == set(NAMES)
    sent_D = {s: decode(r.payload, encoding, plan.adapter.size) for s, r in left.items()}
    total_D = sum(sent_D[site].astype(np.float64) for site in NAMES)
    weights_D = unpack(federation.tools.jobs.checkpoint(job).weights)
    np.testing.assert_array_equal(weights_D, (-total_D / plan.divisor).astype(np.float32))
    for site in NAMES:
        trained_D = federation.sites[site].trainer.trained[1]
        apart_D = np.abs(sent_D[site] - trained_D)
        assert 0 < apart_D.max() <= np.abs(trained_D).max() / 127
        # Asked again after a restart it is the same coins: the sealed bytes.
        order = next(o for s, o, r in federation.link.carried if r is left[site])
        federation.sites[site].restart()
        assert federation.sites[site](order) == left[site]
        first, second = federation.sites[site].events("round.trained")
        spent = ("sampling_rate", "noise_multiplier", "clipping_norm", "steps")
        assert [first[name] for name in spent] == [second[name] for name in spent]
    (entry,) = [e for e in federation.ledger_events("round.aggregated") if e["job"] == job]
    assert entry["update_encoding"] == encoding


def test_a_secure_job_takes_no_encoding_but_its_own(federation):
    with pytest.raises(PlanError, match="update_encoding"):
        submit(federation, privacy_mode="secure-aggregation", update_encoding="int8")


def _inside(reply) -> str:
    import base64
    import json

    return base64.b64decode(json.loads(reply.statement)["payload"]).decode()
