"""Proofs, the private log, `site key`, `site budget` and `--database`, as a person meets them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client_node.home import SiteSettings
from coordinator.home import CoordinatorSettings
from deploy.cli import main as cli
from deploy.cli.database import reachable_database
from model_core.nano import nano_base
from privacy.errors import LedgerError, StoreError
from privacy.signing import Identity
from tests.client_node.harness import Coordinator, CountingTrainer, Site, make_plan


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site after one round, with one withdrawal."""
    base, coordinator = nano_base(), Coordinator(Identity.generate())
    made = Site(tmp_path_factory.mktemp("home") / "north", base, coordinator)
    made.record("ann", "take one tablet")
    made.record("ben", "warfarin")
    plan, basis = make_plan(base)
    agent = made.agent(CountingTrainer())
    agent.handle(coordinator.prepare(plan, basis))
    assert cli.run(["site", "withdraw", "ann", "--home", str(made.home.root)]) == 0
    assert agent.handle(coordinator.order(plan, 1)).kind == "update"
    yield made
    made.close()


def asked(
    capsys: pytest.CaptureFixture[str], *words: str | Path, status: int = 0
) -> dict[str, Any]:
    capsys.readouterr()
    assert cli.run([*map(str, words), "--json"]) == status
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


def test_a_sites_key_verifies_its_ledger(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, key, export = site.home.root, tmp_path / "north.pem", tmp_path / "ledger.jsonl"
    shown = asked(capsys, "site", "key", "--out", key, "--home", home)
    assert shown["key_id"] == site.keys.identity.public.key_id
    assert key.read_text() == shown["public_pem"] == site.keys.identity.public.public_pem
    asked(capsys, "ledger", "export", export, "--home", home)
    assert asked(capsys, "ledger", "verify", export, "--key", key)["key_trusted"]


def test_one_entry_is_proved_and_checked_offline(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, proof, key = site.home.root, tmp_path / "entry.json", tmp_path / "north.pem"
    asked(capsys, "site", "key", "--out", key, "--home", home)
    asked(capsys, "ledger", "prove", "1", "--out", proof, "--home", home)
    shown = asked(capsys, "ledger", "check-proof", proof, "--key", key)
    assert (shown["entry"]["index"], shown["entry"]["kind"]) == (1, "budget.reserved")
    assert shown["key_trusted"]
    proof.write_bytes(proof.read_bytes().replace(b"A", b"B", 1))
    failed = asked(capsys, "ledger", "check-proof", proof, status=LedgerError.exit_code)
    assert failed["error"]["code"] == "ledger-proof"


def test_growth_is_proved_from_a_head_seen_before(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    proof, ledger = tmp_path / "growth.json", site.books()[0]
    asked(capsys, "ledger", "prove", "--since", "2", "--out", proof, "--home", site.home.root)
    held = ledger.root(2)
    assert asked(capsys, "ledger", "check-proof", proof, "--root", held)["old_size"] == 2
    wrong = ["ledger", "check-proof", proof, "--root", "0" * 64]
    assert asked(capsys, *wrong, status=LedgerError.exit_code)["error"]["code"] == "ledger-proof"
    unclear = asked(capsys, "ledger", "prove", "--home", site.home.root, status=40)
    assert unclear["error"]["code"] == "proof-unclear"


def test_the_private_log_is_shown_and_verified_with_the_ledger(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, ledger, private = site.home.root, tmp_path / "ledger.jsonl", tmp_path / "private.jsonl"
    shown = asked(capsys, "ledger", "show", "--private", "--home", home)
    assert [entry["kind"] for entry in shown["latest"]] == ["consent.withdrawn", "round.bound"]
    asked(capsys, "ledger", "export", ledger, "--home", home)
    asked(capsys, "ledger", "export", private, "--private", "--home", home)
    report = asked(capsys, "ledger", "verify", ledger, "--private", private)
    assert (report["valid"], report["private"]["valid"]) == (True, True)
    assert asked(capsys, "ledger", "verify", "--home", home)["private"]["entries"] == 2
    # The ledger itself is not its own private log.
    failed = asked(
        capsys, "ledger", "verify", ledger, "--private", ledger, status=LedgerError.exit_code
    )
    assert (failed["valid"], failed["private"]["valid"]) == (True, False)


def test_a_sites_budget_by_purpose_period_and_person(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    home = site.home.root
    shown = asked(capsys, "site", "budget", "--home", home)
    assert (shown["purposes"][0]["purpose"], shown["subjects"]) == ("drugs", [])
    assert shown["overall"][0]["scope"] == "total"
    assert shown["overall"][0]["epsilon_loc"] == shown["purposes"][0]["epsilon_loc"] > 0
    ann, ben = asked(capsys, "site", "budget", "--subjects", "--home", home)["subjects"]
    assert (ann["subject"], ann["consent"], ben["consent"]) == ("ann", False, True)
    assert ben["epsilon_next"] > ben["epsilon"] == shown["purposes"][0]["epsilon_loc"]
    assert cli.run(["site", "budget", "--subjects", "--home", str(home)]) == 0
    assert "withdrawn" in capsys.readouterr().out


def test_a_database_url_is_checked_and_kept(url: str, tmp_path: Path) -> None:
    assert reachable_database("") == ""
    assert reachable_database(url) == url
    settings = SiteSettings(site="north", base_folder="base", database_url=url)
    settings.save(tmp_path / "site.toml")
    assert SiteSettings.load(tmp_path / "site.toml").database_url == url
    CoordinatorSettings(database_url=url).save(tmp_path / "coordinator.toml")
    assert CoordinatorSettings.load(tmp_path / "coordinator.toml").database_url == url
    for name in ("site.toml", "coordinator.toml"):  # it may hold a password
        assert (tmp_path / name).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ("mysql://secret@host/name", "database-invalid"),
        ("secret", "database-invalid"),
        ("postgresql://user:secret@127.0.0.1:1/name", "database-unreachable"),
    ],
)
def test_a_database_that_cannot_be_is_refused_without_its_password(wrong: str, code: str) -> None:
    with pytest.raises(StoreError) as refusal:
        reachable_database(wrong)
    assert refusal.value.code == code
    assert "secret" not in refusal.value.problem + refusal.value.remedy


def test_init_refuses_a_database_that_does_not_answer_before_it_makes_anything(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "coordinator"
    words = ["coordinator", "init", "--home", home, "--database", "postgresql://x@127.0.0.1:1/y"]
    failed = asked(capsys, *words, status=StoreError.exit_code)
    assert failed["error"]["code"] == "database-unreachable"
    assert not home.exists()
