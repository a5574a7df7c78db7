"""The dictation page in a real browser: spoken to, corrected, exported, and judged by axe.

Needs Chromium, which no wheel brings; a machine without it skips these tests loudly.
"""

from __future__ import annotations

import os
import shutil
from importlib.resources import files

import numpy as np
import pytest
import soundfile as sf

from client_node.home import SiteHome
from client_node.live.events import Heard
from client_node.live.pcm import RATE_HZ
from client_node.store import SiteStore
from model_core.words import Word
from privacy.store import open_engine
from tests.client_node.dictation.site import SITE, empty_home, serving
from tests.client_node.live.live_support import LOUD, CountingEar, sound

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="THE PAGE IS NOT TESTED: no playwright"
)
expect = sync_api.expect
pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("AURICLE_CHROMIUM") or shutil.which("chromium")
TEXT = "Start metformine today."


class DoubtingEar(CountingEar):
    """Hears one sentence, unsure of its second word; finals only, so that texts do not change."""

    def draft(self, samples_N):
        return Heard("Start metformine")

    def final(self, samples_N):
        words = tuple(
            Word(0.3 * n, 0.3 * n + 0.3, word, 0.31 if n == 1 else 0.97)
            for n, word in enumerate(TEXT.split())
        )
        return Heard(TEXT, words, "r7")


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> SiteHome:
    return empty_home(tmp_path_factory.mktemp("home") / "site")


@pytest.fixture(scope="module")
def url(home):
    with serving(home, DoubtingEar()) as address:
        yield address


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """A recording of two loud stretches, for the fake microphone and for a dropped file."""
    path = tmp_path_factory.mktemp("sound") / "spoken.wav"
    sf.write(path, sound((0.6, 0), (1.2, LOUD), (0.8, 0), (1.2, LOUD), (1.5, 0)), RATE_HZ)
    return path


@pytest.fixture(scope="module")
def browser(spoken):
    if CHROMIUM is None:
        pytest.skip("THE PAGE IS NOT TESTED: no chromium; install it or set AURICLE_CHROMIUM")
    with sync_api.sync_playwright() as running:
        started = running.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={spoken}%noloop",
            ],
        )
        yield started
        started.close()


@pytest.fixture
def scheme():
    return "light"


@pytest.fixture
def bypass_csp():
    """Whether scripts of the test itself may run in the page, which its policy forbids."""
    return False


@pytest.fixture
def page(browser, url, scheme, bypass_csp):
    context = browser.new_context(
        locale="en-GB",
        color_scheme=scheme,
        bypass_csp=bypass_csp,
        permissions=["clipboard-read", "clipboard-write", "microphone"],
    )
    opened = context.new_page()
    problems: list[str] = []
    opened.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
    opened.on("pageerror", lambda error: problems.append(str(error)))
    asked: list[str] = []
    opened.on("request", lambda one: asked.append(one.url))
    opened.goto(url)
    expect(opened.locator("#site")).not_to_be_empty()
    yield opened
    context.close()
    assert problems == []
    assert all(one.startswith((url, "data:", "blob:")) for one in asked)


def drop_in(page, path):
    page.set_input_files("#file", path)
    expect(page.locator("#status")).to_contain_text("written")


def test_the_microphone_becomes_text_with_unsure_words_marked(page):
    page.keyboard.press("Alt+R")
    expect(page.locator("#tentative")).not_to_be_empty()
    expect(page.locator(".passage")).to_have_count(2)
    page.keyboard.press("Alt+R")
    expect(page.locator("#status")).to_contain_text("written")
    assert page.locator(".passage").first.inner_text() == TEXT
    assert page.locator("mark").first.inner_text() == "metformine"
    assert page.locator("mark").first.get_attribute("title") == "31 %"
    assert page.locator("#record").get_attribute("aria-pressed") == "false"


def test_a_file_is_edited_copied_and_saved(page, spoken):
    drop_in(page, spoken)
    page.keyboard.press("Alt+U")
    page.keyboard.type("metformin")
    assert page.locator(".passage").first.inner_text() == "Start metformin today."
    assert page.locator(".passage.corrected").count() == 1
    assert page.locator("mark").count() == 1
    page.keyboard.press("Alt+C")
    expect(page.locator("#status")).to_have_text("Copied.")
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == f"Start metformin today.\n{TEXT}"
    with page.expect_download() as saved:
        page.click("#txt")
    assert saved.value.path().read_text() == copied
    with page.expect_download() as saved:
        page.click("#srt")
    lines = saved.value.path().read_text().splitlines()
    assert lines[0] == "1"
    assert lines[1].startswith("00:00:00,")
    assert " --> 00:00:0" in lines[1]
    assert lines[2:5] == ["Start metformin today.", "", "2"]


def test_a_correction_is_kept_with_consent_and_enters_the_next_round(page, spoken, home):
    drop_in(page, spoken)
    page.keyboard.press("Alt+U")
    page.keyboard.type("metformin")
    page.fill("#subject", "patient-0042")
    page.click("#correction button")
    assert page.locator("#kept").inner_text() == ""  # the browser asks for the tick first
    page.check("#consent")
    page.click("#correction button")
    expect(page.locator("#kept")).to_contain_text("1 corrected")
    assert not page.is_checked("#consent")
    engine = open_engine(home.database_url)
    store = SiteStore(engine)
    (kept,) = store.recordings()
    trainable = store.trainable_subjects()
    engine.dispose()
    assert (kept.text, kept.split) == ("Start metformin today.", "train")
    assert len(trainable) == 1
    samples, rate_hz = sf.read(kept.path)
    assert rate_hz == RATE_HZ
    assert np.abs(samples).max() == pytest.approx(LOUD, abs=0.02)


def test_the_page_speaks_chinese_and_says_what_left(page):
    page.click("[data-language=zh]")
    assert page.locator("html").get_attribute("lang") == "zh"
    assert page.locator("#record").inner_text() == "录音"
    assert "SHA-256 " + "cd" * 32 in page.locator("#receipt").inner_text()
    left = page.locator("[data-say]").all_inner_texts()
    assert all(any("\u4e00" <= c <= "\u9fff" for c in one) for one in left)
    page.reload()
    assert page.locator("#record").inner_text() == "录音"


def test_names_of_others_are_text_and_never_markup(page):
    """The fake site's name is a script: had it run, the page would say so."""
    assert SITE in page.locator("#site").inner_text()
    assert page.evaluate("() => window.canary") is None


@pytest.mark.parametrize("bypass_csp", [True])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_axe_finds_nothing(page, spoken, language):
    drop_in(page, spoken)
    page.click(f"[data-language={language}]")
    axe = files("axe_playwright_python").joinpath("axe.min.js").read_text()
    page.evaluate(axe)
    found = page.evaluate("axe.run()")
    assert [(v["id"], [n["html"] for n in v["nodes"]]) for v in found["violations"]] == []
    assert len(found["passes"]) > 20


def test_what_no_browser_can_read_is_said(page, tmp_path):
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF not audio")
    page.set_input_files("#file", broken)
    expect(page.locator("#status.bad")).to_contain_text("cannot read")
