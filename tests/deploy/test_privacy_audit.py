"""`auricle privacy audit` on the nano base: an honest run passes, a broken one is refuted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from typer.testing import CliRunner

from deploy import canary_run
from deploy.cli import privacy_audit
from deploy.errors import CommandError

SMALL = ["--canaries", "200", "--rounds", "6", "--subjects", "4", "--rank", "6", "--json"]


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run(*arguments: str) -> tuple[int, dict[str, object]]:
    app = typer.Typer()
    privacy_audit.register(app)
    done = CliRunner().invoke(app, [*SMALL, *arguments])
    return done.exit_code, json.loads(done.stdout)


def test_an_honest_run_is_not_refuted_and_says_what_it_shows():
    status, found = run()
    assert status == 0
    assert 0 <= found["lower_bound"] < found["claimed_epsilon"] <= 8.0
    low, high = found["gaussian_interval"]
    assert low < high < found["claimed_epsilon"]
    assert 60 < found["included"] < 140
    assert "does not show" in " ".join(found["shows"])


def test_a_run_with_a_tenth_of_the_noise_is_refuted(monkeypatch: pytest.MonkeyPatch):
    honest = canary_run.privatise
    monkeypatch.setattr(
        canary_run,
        "privatise",
        lambda sum_D, plan, source: (
            sum_D.float() + 0.1 * (honest(sum_D, plan, source) - sum_D.float())
        ),
    )
    status, found = run("--epsilon", "1", "--sampling-rate", "1")
    assert status == privacy_audit.EXIT_REFUTED
    assert found["refuted"]
    assert found["lower_bound"] > found["claimed_epsilon"]


def test_a_picture_is_a_png_and_asks_for_its_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("matplotlib")
    picture = tmp_path / "audit.png"
    run("--picture", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CommandError, match="matplotlib"):
        privacy_audit.require_plots()
