"""Evaluation of a manifest: rates and counts, and faults by name."""

import dataclasses
import json

import pytest
import soundfile

from model_core.base import open_base, save_base
from model_core.errors import ManifestError
from model_core.evaluate import normalise, term_accuracy, word_error_rate
from model_core.evaluation import evaluate, read_manifest
from model_core.nano import nano_base, write_nano_checkpoint
from model_core.transcribe import Transcriber
from tests.model_core.conftest import SENTENCES


@pytest.fixture
def manifest(tmp_path, clips):
    rows = []
    for index, (clip, text) in enumerate(zip(clips, SENTENCES, strict=True)):
        soundfile.write(tmp_path / f"{index}.wav", clip.numpy(), 16_000, subtype="FLOAT")
        rows.append({"audio": f"{index}.wav", "text": text, "subject": "s", "terms": ["account"]})
    rows[0] |= {"text": "Something else entirely.", "language": "en", "terms": "office; else"}
    path = tmp_path / "manifest.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path


def test_report_is_what_the_transcripts_say(tiny_base, clips, manifest):
    recordings = read_manifest(manifest)
    report = evaluate(tiny_base, recordings)
    heard = [each.text for each in Transcriber(tiny_base).transcribe_many(clips)]
    assert report.overall.recordings == 3
    assert report.overall.wer == word_error_rate([each.text for each in recordings], heard) > 0.1
    assert report.overall.audio_s == pytest.approx(sum(map(len, clips)) / 16_000, abs=0.01)
    own = term_accuracy([SENTENCES[2]], [heard[2]], ["account"])
    # "else" is missed, "office" is in no reference of its own line.
    assert (report.overall.terms_right, report.overall.terms_total) == (own.right, 2)
    assert report.by_language == {"en": report.overall}
    calibrated = report.overall.calibration
    assert calibrated.words == sum(len(normalise(text).split()) for text in heard)
    assert 0 < calibrated.ece < 1
    assert not any(sentence in str(report) for sentence in (*SENTENCES, *heard))


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["{"], "manifest-format"),
        (["[]"], "manifest-format"),
        (['{"audio": "a.wav"}'], "manifest-format"),
        (['{"audio": "a.wav", "text": 3}'], "manifest-format"),
        (['{"audio": "a.wav", "text": "..."}'], "manifest-format"),
        ([], "manifest-format"),
        (None, "manifest-missing"),
    ],
)
def test_faulty_manifests(tmp_path, lines, code):
    path = tmp_path / "manifest.jsonl"
    if lines is not None:
        path.write_text("\n".join(lines))
    with pytest.raises(ManifestError) as caught:
        read_manifest(path)
    assert caught.value.code == code


def test_a_model_is_a_prepared_base_or_a_checkpoint(tmp_path):
    base = nano_base(seed=4)
    save_base(base, tmp_path / "prepared")
    assert open_base(str(tmp_path / "prepared")).base_sha256 == base.base_sha256
    checkpoint = write_nano_checkpoint(tmp_path / "dense", seed=4)
    opened = open_base(str(checkpoint), dataclasses.replace(base.mixture))
    assert opened.base_sha256 == base.base_sha256
