"""Bad manifests: each fault is named with its line and remedy, and nothing is imported."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from client_node.errors import ManifestError
from client_node.importer import ImportReport, import_recordings
from client_node.manifest import read_manifest
from client_node.store import SiteStore
from privacy.store import open_engine

RATE_HZ = 16_000


def write_wav(path: Path, seconds: float = 0.5, pitch_hz: float = 220.0) -> None:
    time_s = np.arange(int(seconds * RATE_HZ)) / RATE_HZ
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch_hz * time_s), RATE_HZ)


def write_manifest(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def store(tmp_path: Path) -> SiteStore:
    return SiteStore(open_engine(f"sqlite:///{tmp_path / 'site.db'}"))


@pytest.fixture
def rows(tmp_path: Path) -> list[dict[str, object]]:
    made: list[dict[str, object]] = []
    for index in range(3):
        write_wav(tmp_path / f"clip{index}.wav", pitch_hz=200 + 30 * index)
        made.append(
            {"audio": f"clip{index}.wav", "text": f"take {index} tablets", "subject": f"s{index}"}
        )
    return made


def refuse(folder: Path, store: SiteStore, rows: list[dict[str, object]]) -> ManifestError:
    """Import must fail and leave the store as it was."""
    before = store.counts()
    with pytest.raises(ManifestError) as caught:
        import_recordings(write_manifest(folder, rows), "north", store)
    assert store.counts() == before
    assert caught.value.remedy
    return caught.value


def test_good_manifest_is_imported_and_measured(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    rows[0] |= {"split": "heldout", "language": "en", "duration_s": 99, "consent": True}
    seen: list[tuple[int, int]] = []
    report = import_recordings(
        write_manifest(tmp_path, rows),
        "north",
        store,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert report == ImportReport(3, 3, 3, pytest.approx(1.5, abs=0.01), 0, 0, 0, 1)
    assert seen[-1] == (3, 3)
    (held,) = store.recordings("heldout")
    assert held.text == "take 0 tablets"
    assert held.duration_s == pytest.approx(0.5, abs=0.01)  # measured, not the claimed 99
    assert len(store.trainable_subjects()) == 2


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({"audio": "gone.wav"}, "audio-missing", "gone.wav does not exist"),
        ({"phone": "555"}, "manifest-column", "unknown column phone"),
        ({"text": "  "}, "manifest-text-empty", "transcript (text) is empty"),
        ({"text": 7}, "manifest-value", "text is not text"),
        ({"subject": ""}, "manifest-value", "subject is empty"),
        ({"split": "test"}, "manifest-value", "split"),
        ({"consent": "perhaps"}, "manifest-value", "consent"),
    ],
)
def test_fault_is_named_with_its_line(
    tmp_path: Path,
    store: SiteStore,
    rows: list[dict[str, object]],
    change: dict[str, object],
    code: str,
    words: str,
) -> None:
    rows[1] |= change
    error = refuse(tmp_path, store, rows)
    assert error.code == code
    assert "line 2: " in error.problem
    assert words in error.problem


def test_missing_column_is_named(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    del rows[2]["text"]
    error = refuse(tmp_path, store, rows)
    assert error.code == "manifest-column"
    assert "line 3: column text is missing" in error.problem


def test_empty_file_and_file_without_samples_are_audio_empty(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    (tmp_path / "clip1.wav").write_bytes(b"")
    assert refuse(tmp_path, store, rows).code == "audio-empty"
    soundfile.write(tmp_path / "clip1.wav", np.zeros(0), RATE_HZ)
    assert refuse(tmp_path, store, rows).code == "audio-empty"


def test_unreadable_audio_is_named(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    (tmp_path / "clip2.wav").write_bytes(b"this is not sound" * 50)
    error = refuse(tmp_path, store, rows)
    assert error.code == "audio-unreadable"
    assert "line 3: " in error.problem


def test_every_fault_is_listed_at_once(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    rows[0]["text"] = ""
    rows[2]["audio"] = "gone.wav"
    error = refuse(tmp_path, store, rows)
    assert "line 1: " in error.problem
    assert "line 3: " in error.problem


def test_broken_json_missing_file_and_empty_manifest(tmp_path: Path, store: SiteStore) -> None:
    path = tmp_path / "manifest.jsonl"
    for text, words in (("{oops\n", "line 1: not valid JSON"), ("", "holds no recording")):
        path.write_text(text)
        with pytest.raises(ManifestError, match=words) as caught:
            import_recordings(path, "north", store)
        assert caught.value.code == "manifest-format"
    with pytest.raises(ManifestError) as caught:
        import_recordings(tmp_path / "none.jsonl", "north", store)
    assert caught.value.code == "manifest-missing"


def test_same_audio_under_two_subjects_would_break_the_privacy_unit(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    again = {**rows[0], "subject": "someone else"}
    assert refuse(tmp_path, store, [*rows, again]).code == "manifest-subject"
    import_recordings(write_manifest(tmp_path, rows), "north", store)
    assert refuse(tmp_path, store, [again]).code == "manifest-subject"


def test_subject_in_both_splits_is_refused(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    rows[1] |= {"subject": "s0", "split": "heldout"}
    assert refuse(tmp_path, store, rows).code == "manifest-subject"
    import_recordings(write_manifest(tmp_path, [rows[0]]), "north", store)
    assert refuse(tmp_path, store, [rows[1]]).code == "manifest-subject"


def test_importing_twice_changes_nothing_but_corrections(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    import_recordings(write_manifest(tmp_path, rows), "north", store)
    rows[0]["text"] = "corrected"
    report = import_recordings(write_manifest(tmp_path, rows), "north", store)
    assert report.new == 0
    assert store.counts().recordings == 3
    assert {recording.text for recording in store.recordings("train")} >= {"corrected"}


def test_only_this_sites_lines_are_imported(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    rows[0]["site"], rows[1]["site"] = "north", "south"
    report = import_recordings(write_manifest(tmp_path, rows), "north", store)
    assert (report.recordings, report.elsewhere) == (2, 1)


def test_csv_is_read_like_json_lines(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    path = tmp_path / "manifest.csv"

    def write(extra: str) -> None:
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["audio", "text", "subject", "consent", "split"])
            for row in rows:
                writer.writerow([row["audio"], row["text"], row["subject"], "yes", ""])
            file.write(extra)

    write("clip0.wav,text,s0,no,train,surplus\r\n")
    with pytest.raises(ManifestError, match="line 5: more cells than columns"):
        import_recordings(path, "north", store)
    write("")
    assert import_recordings(path, "north", store).new == 3


def test_consent_once_refused_is_not_given_back_by_an_import(
    tmp_path: Path, store: SiteStore, rows: list[dict[str, object]]
) -> None:
    rows[0]["consent"] = False
    import_recordings(write_manifest(tmp_path, rows), "north", store)
    assert len(store.trainable_subjects()) == 2
    store.withdraw_consent("s1")
    del rows[0]["consent"]
    import_recordings(write_manifest(tmp_path, rows), "north", store)
    assert len(store.trainable_subjects()) == 1
    assert [r.text for r in store.recordings("train")] == ["take 2 tablets"]
    assert list(store.training_recordings([1, 2, 3])) == store.trainable_subjects()


@pytest.mark.parametrize("terms", [["met", "war farin"], "met; war farin", "met;war farin;"])
def test_terms_are_a_list_or_text_with_semicolons(tmp_path: Path, terms: object) -> None:
    line = {"audio": "a.wav", "text": "met and war farin", "subject": "p", "terms": terms}
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    assert read_manifest(tmp_path / "m.jsonl")[0].terms == ("met", "war farin")


def test_terms_that_are_not_text_are_refused(tmp_path: Path) -> None:
    line = {"audio": "a.wav", "text": "met", "subject": "p", "terms": [1]}
    (tmp_path / "a.wav").write_bytes(b"RIFF")
    (tmp_path / "m.jsonl").write_text(json.dumps(line))
    with pytest.raises(ManifestError, match="terms"):
        read_manifest(tmp_path / "m.jsonl")
