"""Releases through the agent: only what is signed, whole and loadable serves (invariant I3)."""

from __future__ import annotations

import torch

from client_node.model_store import ModelStore
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase
from model_core.basis import basis_from_bytes
from privacy.parcel import Parcel
from privacy.plan import RoundPlan
from privacy.signing import Identity
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


def adapter_bytes(nano: SpeechBase, plan: RoundPlan, basis: bytes) -> bytes:
    spec = plan.adapter
    config = AdapterConfig(spec.kind, spec.rank, spec.scaling, spec.target_modules)
    adapter = attach(nano.model, config, basis_from_bytes(basis))
    adapter.load_vector(torch.full((spec.size,), 0.01))
    return adapter.to_safetensors()


def active(site: Site, coordinator: Coordinator, nano: SpeechBase) -> str | None:
    trusted = (coordinator.identity.public,)
    return ModelStore(site.home.releases, trusted, nano.base_sha256).active_id


def test_a_signed_release_serves_and_is_on_the_ledger(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    parcel = coordinator.release(plan, adapter_bytes(nano, plan, basis), release="r-one")
    for _ in range(2):  # a repeated one is the same one
        reply = agent.handle(parcel)
        assert reply.kind == "activated"
        assert site.answer(reply).code == "ok"
    assert active(site, coordinator, nano) == "r-one"
    kinds = [entry.kind for entry in site.books()[0].entries()]
    assert "release.activated" in kinds


def test_what_does_not_verify_or_load_never_serves(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    plan, basis = make_plan(nano)
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    good = adapter_bytes(nano, plan, basis)
    stranger = Coordinator(Identity.generate())

    def refused(parcel: Parcel) -> str:
        reply = agent.handle(parcel)
        assert reply.kind == "refused"
        return site.answer(reply).code

    assert refused(stranger.release(plan, good)) == "signature-invalid"
    whole = coordinator.release(plan, good)
    assert refused(Parcel("release", whole.statement, good[:-1] + b"x")) == "release-hash"
    assert refused(coordinator.release(plan, good, base_sha256="0" * 64)) == "release-base"
    assert refused(coordinator.release(plan, good, plan_sha256="0" * 64)) == "plan-mismatch"
    assert refused(coordinator.release(plan, b"not an adapter")) == "adapter-malformed"
    assert active(site, coordinator, nano) is None
    assert agent.handle(coordinator.release(plan, good)).kind == "activated"
