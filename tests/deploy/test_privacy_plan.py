"""`auricle privacy plan` as a person and a script meet it."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest

from deploy import privacy_plots
from deploy.cli import main as cli
from deploy.errors import CommandError
from privacy.planner import PlanAnswer, PlanQuestion, plan_privacy

COMMAND = ["privacy", "plan", "--subjects", "800", "--epsilon", "4", "--rounds", "5"]


@functools.cache
def answered() -> PlanAnswer:
    return plan_privacy(PlanQuestion(subjects=800, epsilon=4.0, delta=1e-5, rounds=5, sites=3))


def test_json_has_the_answer_and_the_noise(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*COMMAND, "--sites", "3", "--clipping-norm", "2", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    chosen = answer["chosen"]
    assert chosen["rounds"] == 5
    assert 3.9 < chosen["epsilon_loc"] <= 4
    assert chosen["epsilon_sec"] < chosen["epsilon_loc"]
    assert answer["noise_standard_deviation"] == pytest.approx(2 * chosen["noise_multiplier"])
    assert len(answer["alternatives"]) == 14
    assert answer["curve"][-1]["round"] == 5
    assert answer["in_words"]


def test_a_person_reads_whether_it_can_learn_and_sees_the_curve(
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("plotext", reason="pip install 'auricle[plots]'")
    assert cli.run([*COMMAND, "--adapter-size", "540000"]) == 0
    shown = capsys.readouterr().out
    assert "Do not start this job" in shown
    assert "ε spent" in shown
    assert "Alternatives at the same ε" in shown
    assert "\x1b" not in shown


def test_without_plotext_the_plan_is_told_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotext", None)
    assert "auricle[plots]" in privacy_plots.terminal_plot(answered())


def test_the_terminal_shows_both_epsilons_and_every_number_of_rounds() -> None:
    pytest.importorskip("plotext", reason="pip install 'auricle[plots]'")
    shown = privacy_plots.terminal_plot(answered())
    for label in ("ε_loc", "ε_sec", "2 rounds", "5 rounds", "10 rounds"):
        assert label in shown


def test_the_picture_is_a_png(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pip install 'auricle[plots]'")
    file = tmp_path / "plan.png"
    privacy_plots.save_plot(answered(), file)
    assert file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(CommandError) as caught:
        privacy_plots.save_plot(answered(), tmp_path / "none" / "plan.png")
    assert caught.value.code == "plot-unwritable"


def test_without_matplotlib_the_remedy_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(CommandError) as caught:
        privacy_plots.save_plot(answered(), tmp_path / "plan.png")
    assert caught.value.code == "plots-missing"
    assert "auricle[plots]" in caught.value.remedy


def test_an_impossible_budget_is_an_accounting_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([*COMMAND[:4], "--epsilon", "-1", "--rounds", "3", "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "accounting-refused"
