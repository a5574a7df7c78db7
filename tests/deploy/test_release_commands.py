"""`auricle release` against a real admin listener, and a site's side of a release's life."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

from client_node.home import SiteSettings
from client_node.model_store import ReleaseError
from client_node.serving import open_model_store
from coordinator.admin_api import create_admin_app
from coordinator.errors import CoordinatorError
from coordinator.home import CoordinatorHome, CoordinatorSettings
from coordinator.job import JobLoop
from coordinator.listeners import Listener
from deploy.cli import main as cli
from deploy.coordinator import release_evaluator
from deploy.release_evaluation import evaluate_release
from model_core.adapter import AdapterConfig, attach
from model_core.base import SpeechBase, save_base
from model_core.nano import nano_base
from privacy.ledger_verify import verify_export
from privacy.signing import Identity
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan
from tests.coordinator.fakes import Federation, StepLink, request
from tests.deploy.test_records import asked
from tests.e2e.federation_run import free_ports


@pytest.fixture(scope="module")
def nano() -> SpeechBase:
    torch.set_num_threads(1)
    return nano_base()


def adapter_of(base: SpeechBase, size: float = 0.01) -> bytes:
    config = AdapterConfig("lora", 2, 4.0, (r"model\.decoder\..*\.(q_proj|v_proj)",))
    adapter = attach(base.model, config)
    adapter.load_vector(torch.full((adapter.size,), size))
    return adapter.to_safetensors()


@pytest.fixture
def office(tmp_path: Path) -> Iterator[tuple[Path, Federation]]:
    """A coordinator's home whose admin listener serves a federation of small sites."""
    federation = Federation(tmp_path)
    (port,) = free_ports(1)
    home = tmp_path / "coordinator"
    settings = CoordinatorSettings(admin_port=port)
    made = CoordinatorHome.create(home, settings, datetime.now(UTC))
    app = create_admin_app(federation.operations, made.admin_token())
    listener = Listener(app, "127.0.0.1", port)
    listener.start()
    yield home, federation
    listener.stop()
    federation.engine.dispose()


def train(federation: Federation, **changes: object) -> str:
    job = federation.operations.submit(request(rounds=1, **changes))
    JobLoop(job, federation.tools, StepLink(federation.sites)).run(federation.clock.wait)
    release = federation.operations.status(job).release
    assert release is not None
    return release


def test_an_operator_lists_shows_publishes_and_withdraws(
    office: tuple[Path, Federation], capsys: pytest.CaptureFixture[str]
) -> None:
    home, federation = office
    first, held = train(federation), train(federation, hold=True)
    at = ("--home", home)
    lines = {one["release"]: one for one in asked(capsys, "release", "list", *at)["releases"]}
    assert (lines[first]["current"], lines[held]["state"]) == (True, "held")
    published = asked(capsys, "release", "publish", held, *at)
    assert published["manifest"]["parent"] == first
    assert published["line"]["current"]
    assert cli.run(["release", "show", held, "--card", *map(str, at)]) == 0
    assert capsys.readouterr().out.rstrip() == published["card"].rstrip()
    asked(capsys, "release", "withdraw", held, "--reason", "worse-on-numbers", *at)
    shown = asked(capsys, "release", "show", held, *at)
    assert [(state, code) for state, _, code in shown["history"]] == [
        ("held", ""),
        ("published", ""),
        ("withdrawn", "worse-on-numbers"),
    ]
    for words in (["list"], ["show", first]):  # tables, for a person
        assert cli.run(["release", *words, *map(str, at)]) == 0
    assert "current" in capsys.readouterr().out
    refused = asked(capsys, "release", "publish", held, *at, status=40)
    assert refused["error"]["code"] == "release-withdrawn"


@pytest.fixture
def site(tmp_path: Path, nano: SpeechBase) -> Iterator[tuple[Site, Coordinator]]:
    coordinator = Coordinator(Identity.generate())
    made = Site(tmp_path / "north", nano, coordinator)
    yield made, coordinator
    made.close()


def test_a_site_tries_a_release_keeps_the_refused_one_and_its_operator_decides(
    site: tuple[Site, Coordinator],
    nano: SpeechBase,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    made, coordinator = site
    home = ("--home", made.home.root)
    made.record("ann", "take one tablet", name="canary")
    (clip,) = made.home.root.glob("canary-*.wav")
    manifest = tmp_path / "canary.jsonl"
    row = {"audio": str(clip), "text": "take one tablet", "subject": "ann"}
    manifest.write_text(json.dumps(row))
    # A random model gets no word right: nothing passes a limit below 1.
    chosen = asked(capsys, "site", "canary", "set", manifest, "--max-wer", "0.5", *home)
    assert chosen["recordings"] == 1
    plan, basis = make_plan(nano)
    agent = made.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    reply = agent.handle(coordinator.release(plan, adapter_of(nano), release="r-one"))
    assert (reply.kind, made.answer(reply).code) == ("refused", "release-canary")

    shown = asked(capsys, "site", "releases", *home)
    (held,) = shown["releases"]
    assert (shown["serves"], held["release"], held["standing"]) == (None, "r-one", "refused")
    assert "word error rate" in held["latest"]["reason"]
    assert cli.run(["site", "releases", *map(str, home)]) == 0
    assert "The base model serves." in capsys.readouterr().out

    again = asked(capsys, "site", "activate", "r-one", *home, status=30)
    assert again["error"]["code"] == "release-canary"
    asked(capsys, "site", "activate", "r-one", "--skip-canary", *home)
    store = open_model_store(made.home, SiteSettings.load(made.home.settings))
    assert store.active_id == "r-one"
    assert asked(capsys, "site", "rollback", *home)["release"] is None
    assert [event.what for event in store.history()] == [
        *("staged", "refused", "activated", "rolled-back")
    ]

    entries = made.books()[0].entries()
    told = [(e.kind, e.fields) for e in entries if e.kind.startswith("release.")]
    assert [kind for kind, _ in told] == [
        *("release.refused", "release.refused", "release.activated", "release.rolled-back")
    ]
    assert told[2][1]["canary_skipped"] is True
    export = tmp_path / "ledger.jsonl"
    made.books()[0].export(export)
    assert verify_export(export, [made.keys.identity.public]).valid
    asked(capsys, "site", "withdraw", "ann", *home)
    assert asked(capsys, "site", "canary", "show", *home)["canary"] is None


def test_a_withdrawn_release_is_past_every_operators_command(
    site: tuple[Site, Coordinator], nano: SpeechBase, capsys: pytest.CaptureFixture[str]
) -> None:
    made, coordinator = site
    plan, basis = make_plan(nano)
    agent = made.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    parcel = coordinator.release(plan, adapter_of(nano), release="r-one")
    assert agent.handle(parcel).kind == "activated"
    open_model_store(made.home, SiteSettings.load(made.home.settings)).withdraw("r-one", "worse")
    home = ("--home", made.home.root)
    refused = asked(capsys, "site", "activate", "r-one", "--skip-canary", *home, status=33)
    assert refused["error"]["code"] == "release-withdrawn"
    assert ReleaseError.exit_code == 33
    assert asked(capsys, "site", "canary", "clear", *home) == {"cleared": False}


def test_a_release_is_measured_beside_its_base_on_public_recordings(
    site: tuple[Site, Coordinator], nano: SpeechBase, tmp_path: Path
) -> None:
    made, _ = site
    for text in ("take one tablet", "warfarin"):
        made.record("p", text, name="public")
    clips = sorted(made.home.root.glob("public-*.wav"))
    rows = [
        {"audio": str(path), "text": text, "terms": ["warfarin"]}
        for path, text in zip(clips, ("take one tablet", "warfarin"), strict=True)
    ]
    manifest = tmp_path / "public.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    save_base(nano, tmp_path / "base")
    found = evaluate_release(manifest, tmp_path / "base", adapter_of(nano, 0.0))
    assert [one.metric for one in found.measured] == ["wer", "cer", "term_accuracy"]
    assert all(one.base == one.release for one in found.measured)  # this adapter does nothing
    assert found.recordings == 2
    assert evaluate_release(manifest, tmp_path / "base", adapter_of(nano, 0.0)) == found
    rows[0]["text"] = "take two tablets"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    other = evaluate_release(manifest, tmp_path / "base", adapter_of(nano, 0.0))
    assert other.data_sha256 != found.data_sha256
    clips[0].unlink()
    with pytest.raises(CoordinatorError) as caught:
        evaluate_release(manifest, tmp_path / "base", adapter_of(nano, 0.0))
    assert caught.value.code == "audio-missing"


def test_a_coordinator_measures_releases_only_where_its_settings_name_a_test_set(
    tmp_path: Path,
) -> None:
    home = CoordinatorHome.create(tmp_path / "c", CoordinatorSettings(), datetime.now(UTC))
    assert release_evaluator(home) is None
    manifest = tmp_path / "public.jsonl"
    manifest.write_text(json.dumps({"audio": "a.wav", "text": "words"}))
    settings = dataclasses.replace(home.settings(), evaluation_manifest=str(manifest))
    settings.save(home.settings_file)
    assert release_evaluator(home) is not None
