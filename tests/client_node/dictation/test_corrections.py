"""What the dictation page's routes answer, and what a correction may be."""

from __future__ import annotations

import io
import wave

import httpx
import numpy as np
import pytest
import soundfile as sf

from client_node.dictation.corrections import Corrections
from client_node.errors import ManifestError
from client_node.store import SiteStore
from privacy.store import open_engine
from tests.client_node.dictation.site import SITE, empty_home, serving

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return empty_home(tmp_path_factory.mktemp("home") / "site")


@pytest.fixture(scope="module")
def url(home):
    with serving(home) as address:
        yield address


def wav(seconds=1.0, rate_hz=RATE_HZ, channels=1, width=2, level=1000):
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate_hz)
        samples = np.full(int(seconds * rate_hz) * channels, level, "<i2")
        writer.writeframes(samples.tobytes() if width == 2 else bytes(len(samples)))
    return file.getvalue()


def recordings(home):
    engine = open_engine(home.database_url)
    try:
        return SiteStore(engine).recordings()
    finally:
        engine.dispose()


def post(url, audio=None, headers=None, **fields):
    data = {"text": "Take two.", "subject": "patient-1", "consent": "true", **fields}
    files = {"file": ("../../x.wav", audio if audio is not None else wav())}
    return httpx.post(f"{url}/dictation/corrections", data=data, files=files, headers=headers)


def test_the_page_allows_no_inline_script_and_no_other_host(url):
    reply = httpx.get(url)
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "<script>" not in reply.text
    assert "style=" not in reply.text
    for name in ("index.html", "..%2Fpage.py", "nothing.js"):
        assert httpx.get(f"{url}/dictation/{name}").status_code == 404
    assert httpx.get(f"{url}/site").status_code == 200
    state = httpx.get(f"{url}/dictation/state").json()
    assert state["site"] == SITE
    assert state["last_receipt"]["sha256"] == "cd" * 32


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"consent": "false"}, "consent-missing"),
        ({"text": "  "}, "manifest-text-empty"),
        ({"subject": " "}, "manifest-value"),
        ({"audio": b""}, "audio-unreadable"),
        ({"audio": b"RIFF" + b"\0" * 40}, "audio-unreadable"),
        ({"audio": wav(channels=2)}, "audio-unreadable"),
        ({"audio": wav(width=1)}, "audio-unreadable"),
        ({"audio": wav(seconds=31)}, "audio-unreadable"),
        ({"audio": wav(seconds=0)}, "audio-unreadable"),
        ({"audio": wav(rate_hz=1000)}, "audio-unreadable"),
        ({"audio": wav()[:44]}, "audio-unreadable"),
    ],
)
def test_what_may_not_be_kept_is_refused_and_leaves_nothing(url, home, fields, code):
    reply = post(url, **fields)
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, code)
    assert recordings(home) == []
    assert not home.corrections.exists() or list(home.corrections.iterdir()) == []


def test_pages_of_others_may_keep_nothing(url, home):
    reply = post(url, headers={"Origin": "http://evil.example"})
    assert (reply.status_code, reply.json()["error"]["code"]) == (403, "cross_site")
    assert recordings(home) == []


def test_a_correction_becomes_a_private_training_recording_once(tmp_path):
    home = empty_home(tmp_path / "site")
    corrections = Corrections(home)
    assert corrections.keep(io.BytesIO(wav(level=500)), "Take two.", "patient-1").new == 1
    again = corrections.keep(io.BytesIO(wav(level=500)), "Take three.", "patient-1")
    assert again.new == 0
    (kept,) = recordings(home)
    assert (kept.text, kept.split, kept.duration_s) == ("Take three.", "train", 1.0)
    (file,) = home.corrections.iterdir()
    assert str(file) == kept.path
    assert file.stat().st_mode & 0o077 == 0
    assert home.corrections.stat().st_mode & 0o077 == 0
    assert sf.info(file).format == "FLAC"


def test_the_same_sound_of_another_person_is_refused_and_the_first_stays(tmp_path):
    home = empty_home(tmp_path / "site")
    corrections = Corrections(home)
    corrections.keep(io.BytesIO(wav()), "Take two.", "patient-1")
    with pytest.raises(ManifestError) as raised:
        corrections.keep(io.BytesIO(wav()), "Take two.", "patient-2")
    assert raised.value.code == "manifest-subject"
    (kept,) = recordings(home)
    assert len(list(home.corrections.iterdir())) == 1
    assert kept.text == "Take two."
