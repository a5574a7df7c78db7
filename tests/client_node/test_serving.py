"""The serving side over a real home: a nano base, a signed release, a ledger with spend in it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from client_node.errors import SiteError
from client_node.home import SiteSettings
from client_node.model_store import ReleaseError
from client_node.serving import evaluate_site, open_model_store, open_transcriber
from client_node.status import collect_status
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase
from model_core.errors import WeightsError
from privacy.errors import SignatureError
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


def released(site: Site, coordinator: Coordinator, base: SpeechBase) -> bytes:
    """Activate, by the agent, a random adapter large enough to be heard; returns its bytes."""
    config = AdapterConfig("lora", 2, 4.0, ("encoder_attn.q_proj", "encoder_attn.v_proj"))
    adapter = attach(base.model, config)
    generator = torch.Generator().manual_seed(3)
    adapter.load_vector(torch.randn(adapter.size, generator=generator))
    data = adapter.to_safetensors()
    plan, basis = make_plan(base)
    agent = site.agent(CountingTrainer())
    for parcel in (coordinator.prepare(plan, basis), coordinator.order(plan, 1)):
        assert agent.handle(parcel).kind in ("accepted", "update")
    assert agent.handle(coordinator.release(plan, data)).kind == "activated"
    return data


def clip_of(site: Site) -> Path:
    site.record("speaker", "words", name="tone", split="heldout", terms=("words",))
    (clip,) = site.home.root.glob("tone-*.wav")
    return clip


def test_what_the_agent_activated_is_what_transcribes(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    clip = clip_of(site)
    transcriber = open_transcriber(site.home)
    before = transcriber.transcribe(clip)
    assert before.release is None
    released(site, coordinator, nano)
    after = transcriber.transcribe(clip)
    assert after.release is not None
    assert after.transcript.text != before.transcript.text
    open_model_store(site.home, SiteSettings.load(site.home.settings)).rollback()
    assert transcriber.transcribe(clip) == before


def test_status_shows_spend_release_and_what_left_and_verifies_them(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    fresh = collect_status(site.home)
    assert fresh.release is None
    assert [(line.purpose, line.epsilon_spent) for line in fresh.budgets] == [("drugs", 0.0)]
    assert fresh.bytes_sent == 0
    adapter = released(site, coordinator, nano)
    shown = collect_status(site.home)
    (budget,) = shown.budgets
    assert 0 < budget.epsilon_spent < budget.epsilon_cap == 8.0
    assert {line.kind for line in shown.receipts} == {"accepted", "update", "activated"}
    assert shown.bytes_sent == sum(line.size_bytes for line in shown.receipts) > 0
    assert shown.release is not None
    stored = site.home.releases / shown.release.release / "adapter_model.safetensors"
    assert hashlib.sha256(stored.read_bytes()).digest() == hashlib.sha256(adapter).digest()
    stored.write_bytes(adapter + b" ")
    with pytest.raises(ReleaseError):
        collect_status(site.home)


def test_evaluation_scores_the_base_and_the_release_on_held_out_recordings(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    clip_of(site)
    assert evaluate_site(site.home).after is None
    released(site, coordinator, nano)
    result = evaluate_site(site.home)
    assert result.before.recordings == 1
    assert result.before.terms_total == 1
    assert result.prompted is not None
    assert result.after is not None


def test_a_base_that_was_exchanged_does_not_serve(site: Site) -> None:
    clip = clip_of(site)
    settings = SiteSettings.load(site.home.settings)
    config = Path(settings.base_folder) / "config.json"
    fields = json.loads(config.read_text())
    fields["auricle"]["base_sha256"] = "00" * 32
    config.write_text(json.dumps(fields))
    with pytest.raises(WeightsError) as caught:
        open_transcriber(site.home).transcribe(clip)
    assert caught.value.code == "base-checksum"


def test_before_joining_nobodys_release_serves(
    site: Site, coordinator: Coordinator, nano: SpeechBase
) -> None:
    released(site, coordinator, nano)
    site.home.coordinator_key.unlink()
    with pytest.raises(SignatureError):
        open_transcriber(site.home).warm_up()
    site.home.settings.unlink()
    with pytest.raises(SiteError):
        open_transcriber(site.home)
