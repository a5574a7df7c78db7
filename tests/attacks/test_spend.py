"""Ways around the budget: an old database, a new name, a second draw, a failure that tells."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from client_node.consent import withdraw_consent
from client_node.home import SiteSettings
from client_node.store import SiteStore
from model_core.base import SpeechBase
from privacy.errors import AuricleError
from privacy.parcel import UpdateHeader
from privacy.signing import open_as
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


def database_files(site: Site) -> list[Path]:
    return [p for p in site.home.root.iterdir() if p.name.startswith("auricle.db")]


def test_a_restored_database_that_forgot_a_spent_round_is_refused(
    site: Site, nano: SpeechBase, coordinator: Coordinator, tmp_path: Path
) -> None:
    """The update left the building; the backup has neither its reservation nor its bytes."""
    plan, basis = make_plan(nano)
    site.agent(CountingTrainer()).handle(coordinator.prepare(plan, basis))
    for engine in site._engines:
        engine.dispose()
    kept = tmp_path / "backup"
    kept.mkdir()
    for file in database_files(site):
        shutil.copy(file, kept)
    order = coordinator.order(plan, 1)
    first = site.agent(CountingTrainer()).handle(order)
    assert first.kind == "update"
    for engine in site._engines:
        engine.dispose()
    for file in database_files(site):
        file.unlink()
    for file in kept.iterdir():
        shutil.copy(file, site.home.root)
    with pytest.raises(AuricleError) as caught:
        site.agent(CountingTrainer()).handle(order)
    assert caught.value.code == "budget-restored"


def test_a_site_under_a_new_name_does_not_start_a_new_budget(
    site: Site, nano: SpeechBase, coordinator: Coordinator
) -> None:
    plan, basis = make_plan(nano)
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"
    settings = SiteSettings.load(site.home.settings)
    fields = {**settings.__dict__, "site": "north-2"}
    SiteSettings(**fields).save(site.home.settings)
    with pytest.raises(AuricleError) as caught:
        site.agent(CountingTrainer())
    assert caught.value.code == "site-renamed"


@pytest.mark.parametrize("how", ["withdrawn", "damaged"])
def test_a_recording_that_vanishes_in_mid_round_does_not_fail_the_round(
    site: Site,
    nano: SpeechBase,
    coordinator: Coordinator,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
) -> None:
    """A failed round is an answer without noise: it tells that the subject was drawn."""
    site.record("ann", "take one tablet")
    site.record("ben", "warfarin")
    plan, basis = make_plan(nano, sampling_rate=1.0)
    parts = site.parts()
    parts.features.prepare(parts.store.recordings())
    agent = site.agent()
    agent.handle(coordinator.prepare(plan, basis))
    read = SiteStore.training_recordings

    def then(store: SiteStore, subjects: list[int]) -> object:
        found = read(store, subjects)
        if how == "withdrawn":
            withdraw_consent("ann", parts.store, site.home.features, site.private_log())
        else:
            for shard in site.home.features.glob("*/*.safetensors"):
                shard.write_bytes(b"damaged")
        return found

    monkeypatch.setattr(SiteStore, "training_recordings", then)
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"


def test_what_an_update_states_does_not_tell_of_a_withdrawal(
    site: Site, nano: SpeechBase, coordinator: Coordinator
) -> None:
    site.record("ann", "take one tablet")
    site.record("ben", "warfarin")
    plan, basis = make_plan(nano)
    agent = site.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    sizes = []
    for round_ in (1, 2, 3):
        if round_ == 3:
            parts = site.parts()
            withdraw_consent("ann", parts.store, site.home.features, site.private_log())
        update = agent.handle(coordinator.order(plan, round_))
        sizes.append(
            open_as(UpdateHeader, update.statement, (site.keys.identity.public,)).tree_size
        )
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0]
