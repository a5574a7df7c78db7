"""Settings and policy files: read strictly, written with their comments."""

from __future__ import annotations

from pathlib import Path

import pytest

from client_node.errors import SiteError
from client_node.home import SiteHome, SiteSettings
from client_node.policy import SitePolicy, default_policy, trust_coordinator


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "policy.toml"
    default_policy(made, coordinators=("aa",), bases=("bb",), purposes={"drug-names": 4.0})
    return made


def test_default_policy_is_safe_and_readable(path: Path) -> None:
    policy = SitePolicy.load(path)
    assert policy.allow_unprotected is False
    assert policy.caps.epsilon_cap("drug-names") == 4.0
    assert policy.caps.epsilon_cap("any other name") == 0.0  # no new budget by a new name
    assert policy.caps.delta == 1e-6
    assert path.stat().st_mode & 0o077 == 0
    assert path.read_text().count("# ") > 8


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("min_sites = 2", "min_sites = true", "min_sites"),
        ("min_sites = 2", "min_sites = -1", "min_sites"),
        ("min_sites = 2", "", "min_sites"),
        ("min_sites = 2", "min_sites = 2\nhours = 3", "hours"),
        ("drug-names = 4.0", 'drug-names = "all"', "purposes"),
        ("delta = 1e-06", "delta = [1]", "delta"),
        ("min_sites = 2", "min_sites = ", "TOML"),
    ],
)
def test_wrong_policy_is_named(path: Path, old: str, new: str, words: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(SiteError, match=words) as caught:
        SitePolicy.load(path)
    assert caught.value.remedy


def test_trusting_another_coordinator_keeps_the_rest(path: Path) -> None:
    before = path.read_text()
    trust_coordinator(path, "cc")
    trust_coordinator(path, "cc")
    assert SitePolicy.load(path).coordinators == ("aa", "cc")
    assert path.read_text() == before.replace('["aa"]', '["aa", "cc"]')
    path.write_text(before.replace('coordinators = ["aa"]', 'coordinators = [\n  "aa",\n]'))
    with pytest.raises(SiteError, match="one line"):
        trust_coordinator(path, "cc")


def test_purpose_names_are_plain(tmp_path: Path) -> None:
    with pytest.raises(SiteError, match="purpose"):
        default_policy(tmp_path / "p.toml", purposes={'x = 9\n"y"': 1.0})


def test_settings_are_read_strictly(tmp_path: Path) -> None:
    home = SiteHome(tmp_path)
    with pytest.raises(SiteError, match="does not exist"):
        SiteSettings.load(home.settings)
    settings = SiteSettings(site="north", base_folder="/base", poll_s=0.5)
    settings.save(home.settings)
    assert SiteSettings.load(home.settings) == settings
    text = home.settings.read_text()
    for bad, words in (
        (text + "speed = 3\n", "unknown setting: speed"),
        (text.replace('"north"', '"North Ward"'), "lower-case"),
        (text.replace("poll_s = 0.5", "poll_s = 0"), "out of range"),
        (text.replace("rows_per_step = 16", 'rows_per_step = "many"'), "wrong type"),
        ("site = 'north'\n", "lacks a setting"),
    ):
        home.settings.write_text(bad)
        with pytest.raises(SiteError, match=words):
            SiteSettings.load(home.settings)
