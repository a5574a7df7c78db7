"""The command line as a person and a script meet it: help, errors, exit codes, JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from deploy.cli import main as cli
from deploy.cli import rounds, site
from deploy.cli.admin_client import AdminClient
from deploy.errors import CommandError
from model_core.errors import AudioError
from privacy.errors import BudgetError


def commands() -> Iterator[tuple[str, ...]]:
    """The words of every command, mounted or nested."""

    def walk(command: click.Command, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        if isinstance(command, click.Group):
            for name, child in command.commands.items():
                yield from walk(child, (*words, name))
        else:
            yield words

    yield from walk(typer.main.get_command(cli.app), ())


COMMANDS = list(commands())


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AURICLE_HOME", raising=False)
    return tmp_path


def last_json(capsys: pytest.CaptureFixture[str]) -> dict[str, object]:
    """Standard output, which must be exactly one JSON object on one line."""
    (line,) = capsys.readouterr().out.splitlines()
    fields = json.loads(line)
    assert isinstance(fields, dict)
    return fields


def test_every_command_of_the_tour_is_there() -> None:
    names = {" ".join(words) for words in COMMANDS}
    assert names >= {
        *(f"coordinator {name}" for name in ("init", "start", "invite", "sites")),
        *(f"site {name}" for name in ("init", "join", "import", "start", "status")),
        *(f"site {name}" for name in ("receipts", "serve", "evaluate", "rollback")),
        *("round start", "round status", "transcribe", "doctor"),
        *(f"ledger {name}" for name in ("show", "verify", "export")),
    }


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_with_its_own_example_and_json(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: auricle {' '.join(words)}" in shown
    assert "--json" in shown


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_documented_with_its_example(words: tuple[str, ...]) -> None:
    page = Path(__file__).parents[2].joinpath("docs/commands.md").read_text(encoding="utf-8")
    assert f"`auricle {' '.join(words)}" in page


def test_documented_exit_codes_are_those_of_the_errors() -> None:
    page = Path(__file__).parents[2].joinpath("docs/commands.md").read_text(encoding="utf-8")
    documented = {
        int(line.split("|")[1])
        for line in page.splitlines()
        if line.startswith("| ") and line.split("|")[1].strip().isdigit()
    }
    constants = {
        cli.EXIT_INTERNAL,
        cli.EXIT_USAGE,
        cli.EXIT_INTERRUPTED,
        rounds.EXIT_ABANDONED,
        BudgetError.exit_code,
        AudioError.exit_code,
        CommandError.exit_code,
    }
    assert constants <= documented


@pytest.mark.parametrize(
    ("arguments", "status", "code"),
    [
        (["site", "status"], 40, "home-missing"),
        (["transcribe", "x.wav"], 40, "home-missing"),
        (["ledger", "show"], 40, "home-missing"),
        (["round", "status"], 40, "home-missing"),
        (["coordinator", "sites"], 40, "home-missing"),
        (["ledger", "verify", "missing.jsonl"], 6, "ledger-export-missing"),
        (["site", "receipts", "--home", "nowhere"], 40, "home-missing"),
        (["site", "launch"], 2, "usage"),
        (["transcribe"], 2, "usage"),
        (["doctor", "--port", "many"], 2, "usage"),
    ],
)
def test_a_failure_is_one_json_object_with_its_exit_status(
    empty_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    status: int,
    code: str,
) -> None:
    assert cli.run([*arguments, "--json"]) == status
    error = last_json(capsys)["error"]
    assert isinstance(error, dict)
    assert set(error) == {"code", "problem", "remedy"}
    assert error["code"] == code
    assert error["problem"]
    assert error["remedy"]


def test_a_failure_without_json_goes_to_stderr_with_its_remedy(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["site", "status"]) == 40
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Error: there is no site in this folder" in shown.err
    assert "Remedy: make one with `auricle site init NAME`" in shown.err


def test_several_sites_in_one_folder_are_never_guessed_between(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("auricle-site-a", "auricle-site-b"):
        (empty_folder / name).mkdir()
        (empty_folder / name / "site.toml").touch()
    assert cli.run(["site", "receipts", "--json"]) == 40
    error = last_json(capsys)["error"]
    assert isinstance(error, dict)
    assert error["code"] == "home-ambiguous"
    assert "auricle-site-a, auricle-site-b" in str(error["problem"])


def test_interruption_ends_with_130(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> Path:
        raise KeyboardInterrupt

    monkeypatch.setattr(site, "existing_site", interrupted)
    assert cli.run(["site", "receipts", "--json"]) == 130
    assert "error" in last_json(capsys)


def test_an_unforeseen_error_is_reported_without_a_traceback_unless_asked(
    empty_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: object) -> Path:
        raise ZeroDivisionError("sum of nothing")

    monkeypatch.setattr(site, "existing_site", broken)
    assert cli.run(["site", "receipts"]) == 1
    shown = capsys.readouterr().err
    assert "ZeroDivisionError" in shown
    assert "Traceback" not in shown
    monkeypatch.setenv("AURICLE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        cli.run(["site", "receipts"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("auricle ")
    assert issubclass(CommandError, Exception)


def test_admin_errors_pass_on_the_coordinators_own_words() -> None:
    import httpx

    def answer(request: httpx.Request) -> httpx.Response:
        assert request.headers["authorization"] == "Bearer secret"
        told = {"code": "no-sites", "problem": "no site", "remedy": "invite one"}
        return httpx.Response(400, json=told)

    transport = httpx.MockTransport(answer)
    with (
        AdminClient("http://127.0.0.1:1", "secret", transport) as admin,
        pytest.raises(CommandError) as caught,
    ):
        admin.post("/admin/jobs", {})
    assert (caught.value.code, caught.value.remedy) == ("no-sites", "invite one")


def test_admin_that_does_not_run_says_how_to_start_it() -> None:
    with (
        AdminClient("http://127.0.0.1:1", "secret") as admin,
        pytest.raises(CommandError, match="no coordinator answers") as caught,
    ):
        admin.get("/admin/sites")
    assert "auricle coordinator start" in caught.value.remedy
