"""The demo's parts that need no federation: corpus, split of real recordings, result, screen."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from deploy.demo.corpus import (
    HELDOUT_GENERAL,
    INSTITUTIONS,
    PUBLIC_TERMS,
    TRAIN_GENERAL,
    VARIANTS,
    public_utterances,
    site_utterances,
)
from deploy.demo.recipe import QUICK, Recipe
from deploy.demo.recordings import split_by_site
from deploy.demo.result import DemoResult, Score, SiteResult
from deploy.demo.screen import RoundView, Screen, last_screen
from deploy.errors import CommandError


def site_result(before: float, after: float, noiseless: float | None) -> SiteResult:
    return SiteResult(
        name="st-mary",
        subjects=10,
        heldout=4,
        before=Score(before, 0.8),
        prompted=Score(0.5, 0.4),
        after=Score(after, 0.4),
        after_prompted=None,
        noiseless=None if noiseless is None else Score(noiseless, 0.3),
        general_before=0.1,
        general_after=0.1,
        epsilon_loc=7.9,
        epsilon_sec=4.4,
        epsilon_cap=8.0,
        bytes_sent=1_000_000,
        seconds=60.0,
        ledger_verified=True,
    )


def demo_result(*sites: SiteResult) -> DemoResult:
    return DemoResult(
        24, "r1", "/f/coordinator/releases/r1", "/f/coordinator", True, 700.0, {}, 1e-5, 2, sites
    )


def test_no_voice_variant_sentence_or_term_crosses_a_split() -> None:
    train, heldout, public = (set(VARIANTS[split]) for split in ("train", "heldout", "public"))
    assert not train & heldout
    assert not train & public
    assert not heldout & public
    for site in INSTITUTIONS:
        assert not set(site.train_sentences) & set(site.heldout_sentences)
        assert not set(site.terms) & set(PUBLIC_TERMS)
        trained = {utterance.text for utterance in site_utterances(site, "train", 300)}
        assert not trained & {u.text for u in site_utterances(site, "heldout", 300)}
    assert not set(TRAIN_GENERAL) & set(HELDOUT_GENERAL)
    spoken = {term for utterance in public_utterances(400) for term in utterance.terms}
    assert not spoken & {term for site in INSTITUTIONS for term in site.terms}


def test_the_corpus_is_the_same_every_time_and_every_term_is_said() -> None:
    site = INSTITUTIONS[0]
    first = list(site_utterances(site, "train", 40))
    assert first == list(site_utterances(site, "train", 40))
    assert len({utterance.subject for utterance in first}) == 40
    assert {term for utterance in first for term in utterance.terms} == set(site.terms)
    assert all(term in u.text.lower() for u in first for term in u.terms)


def test_the_comparison_differs_from_the_private_job_in_its_noise_alone() -> None:
    private = Recipe().request(private=True, basis="b")
    noiseless = Recipe().request(private=False, basis="b")
    assert private.pop("epsilon") == Recipe().epsilon
    assert noiseless.pop("privacy_mode") == "none"
    assert private == noiseless
    assert QUICK.subjects < 100


def test_share_of_the_noiseless_gain() -> None:
    two = demo_result(site_result(0.0, 0.4, 0.5), site_result(0.2, 0.5, 0.7))
    assert two.noiseless_share == pytest.approx(0.7)
    assert demo_result(site_result(0.1, 0.4, None)).noiseless_share is None
    assert demo_result(site_result(0.4, 0.4, 0.4)).noiseless_share is None


def test_json_has_the_names_that_scripts_use() -> None:
    printed = json.loads(json.dumps(demo_result(site_result(0.1, 0.4, 0.5)).as_json()))
    assert printed.keys() >= {"rounds", "release", "ledger_verified", "seconds", "sites"}
    wanted = {"name", "terms_before", "terms_after", "wer_before", "wer_after"}
    wanted |= {"epsilon_loc", "epsilon_sec", "epsilon_cap", "bytes_sent"}
    assert printed["sites"][0].keys() >= wanted
    assert printed["sites"][0]["terms_after"] == 0.4


def test_last_screen_says_what_epsilon_sec_does_not_promise() -> None:
    console = Console(file=io.StringIO(), width=100)
    for part in last_screen(demo_result(site_result(0.1, 0.4, 0.5))):
        console.print(part, markup=False)
    shown = " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]
    assert "75 % of what the same job wins without noise" in shown
    assert "does not hold against the coordinator" in shown
    assert "10.0 %" in shown
    assert "40.0 %" in shown


def test_progress_off_a_terminal_is_plain_lines() -> None:
    sink = io.StringIO()
    ticks = iter(range(100))
    screen = Screen(Console(file=sink, width=120), clock=lambda: float(next(ticks)))
    with screen.rounds("Private rounds", 4) as show:
        for number in range(5):
            show(RoundView(number, 4, 3, 3 * number, 2.0, 8.0))
    lines = sink.getvalue().splitlines()
    assert sum("round " in line for line in lines) == 5
    assert "ε 2.00 of 8.00" in lines[1]
    assert "\x1b" not in sink.getvalue()
    assert set(screen.seconds_by_stage) == {"Private rounds"}


def write_manifest(folder: Path, **columns: object) -> None:
    (folder / "a.wav").write_bytes(b"RIFF")
    lines = [
        {"audio": "a.wav", "text": "hello", "subject": f"p{number}", "site": f"s{number % 2}"}
        | columns
        for number in range(20)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_real_recordings_are_split_by_subject_and_others_are_never_ones_own(tmp_path: Path) -> None:
    write_manifest(tmp_path)
    sites = split_by_site(tmp_path, tmp_path / "out")
    assert [(site.name, site.subjects, site.heldout) for site in sites] == [
        ("s0", 8, 2),
        ("s1", 8, 2),
    ]
    for site, other in zip(sites, reversed(sites), strict=True):
        mine = [json.loads(line) for line in site.manifest.read_text().splitlines()]
        others = [json.loads(line) for line in site.others.read_text().splitlines()]
        theirs = [json.loads(line) for line in other.manifest.read_text().splitlines()]
        assert others == [line for line in theirs if line["split"] == "heldout"]
        held_out = {line["subject"] for line in mine if line["split"] == "heldout"}
        assert not held_out & {line["subject"] for line in mine if line["split"] == "train"}


def test_recordings_without_a_site_are_refused_with_what_to_do(tmp_path: Path) -> None:
    write_manifest(tmp_path, site=None)
    with pytest.raises(CommandError, match="one of at least two sites") as error:
        split_by_site(tmp_path, tmp_path / "out")
    assert "column `site`" in error.value.remedy
    with pytest.raises(CommandError, match="does not exist"):
        split_by_site(tmp_path / "nowhere", tmp_path / "out")
