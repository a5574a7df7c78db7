"""Correctly signed parcels of a coordinator that means harm, or is broken."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys

import pytest
from peft import get_peft_model_state_dict
from safetensors.torch import save

from client_node.model_store import ModelStore, ReleaseError
from model_core.adapter import AdapterConfig, attach, load_adapter
from model_core.base import SpeechBase
from model_core.errors import AdapterError
from privacy.errors import PlanError
from privacy.parcel import Parcel, RoundOrder
from privacy.plan import RoundPlan
from privacy.signing import payload_type_of, seal, seal_statement
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan

ORDER_FAULTS = {
    "tree head that is none": {"tree_head": "none"},
    "tree size below zero": {"tree_size": -1},
    "job name of 100 kB": {"job": "a" * 100_000},
    "round below zero": {"round": -1},
}


@pytest.mark.parametrize("fault", ORDER_FAULTS.values(), ids=ORDER_FAULTS)
def test_no_signed_order_stops_the_service(
    site: Site, nano: SpeechBase, coordinator: Coordinator, fault: dict[str, object]
) -> None:
    plan, basis = make_plan(nano)
    agent = site.agent(CountingTrainer())
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"
    vector = bytes(4 * plan.adapter.size)
    order = RoundOrder(
        job=plan.job,
        round=1,
        plan_sha256=plan.sha256,
        payload_sha256=hashlib.sha256(vector).hexdigest(),
        tree_head="0" * 64,
        tree_size=1,
    )
    order = dataclasses.replace(order, **fault)
    assert (
        agent.handle(Parcel("round", seal(order, coordinator.identity), vector)).kind == "refused"
    )
    assert agent.failure is None
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"


@pytest.mark.parametrize("job", ["a" * 100_000, "../../job", "\x1b[2J"])
def test_no_signed_plan_stops_the_service(
    site: Site, nano: SpeechBase, coordinator: Coordinator, job: str
) -> None:
    plan, basis = make_plan(nano)
    hostile = plan.to_json().replace(plan.job.encode(), json.dumps(job)[1:-1].encode())
    statement = seal_statement(hostile, payload_type_of(RoundPlan), coordinator.identity)
    agent = site.agent(CountingTrainer())
    assert agent.handle(Parcel("prepare", statement, basis)).kind == "refused"
    assert agent.failure is None
    assert agent.handle(coordinator.prepare(plan, basis)).kind == "accepted"


def test_a_release_cannot_take_the_place_of_the_pointer(
    site: Site, nano: SpeechBase, coordinator: Coordinator
) -> None:
    plan, _ = make_plan(nano)
    parcel = coordinator.release(plan, b"adapter", release="active.json")
    store = ModelStore(site.home.releases, (coordinator.identity.public,), nano.base_sha256)
    with pytest.raises(ReleaseError) as caught:
        store.stage(parcel.statement, parcel.payload)
    assert caught.value.code == "release-name"
    assert store.active_id is None  # the pointer is still readable


@pytest.mark.parametrize(
    "lie",
    [{"rank": 2_000_000}, {"rank": 0}, {"rank": "2"}, {"scaling": float("nan")}, {"seed": "x"}],
    ids=str,
)
def test_an_adapters_metadata_cannot_ask_for_more_than_its_tensors(
    nano: SpeechBase, monkeypatch: pytest.MonkeyPatch, lie: dict[str, object]
) -> None:
    """A kilobyte of adapter whose stated rank would make peft reserve gigabytes."""
    config = AdapterConfig("lora", 2, 1.0, (r"decoder\.layers\.0\.self_attn\.q_proj",))
    honest = attach(nano.model, config)
    fields = dataclasses.asdict(honest.config) | lie
    state = {n: t.contiguous() for n, t in get_peft_model_state_dict(honest.peft_model).items()}
    data = save(state, metadata={"auricle_adapter": json.dumps(fields)})
    monkeypatch.setattr("model_core.adapter.attach", None)  # nothing may be built of it
    with pytest.raises(AdapterError) as caught:
        load_adapter(nano.model, data)
    assert caught.value.code == "adapter-malformed"


def test_no_plan_keeps_the_accountant_busy_for_minutes(nano: SpeechBase) -> None:
    """Rare sampling with little noise takes minutes and gigabytes: 40 s at q = 1e-5."""
    for rate in (1e-5, 1e-9, 1e-300):
        with pytest.raises(PlanError):
            make_plan(nano, sampling_rate=rate)
    plan, _ = make_plan(nano, sampling_rate=1e-4, noise_multiplier=0.3)
    mechanism = f"{plan.sampling_rate}, {plan.noise_multiplier}"
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30,) * 2);"
        "from privacy.accountant import *;"
        f"epsilon([MechanismEvent({mechanism}, 1)], 1e-6)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
