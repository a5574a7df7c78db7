"""Releases swap under load: no request fails, and each is answered by what served meanwhile."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest

from benchmarks.hot_swap import (
    BASE,
    FORMATS,
    RELEASES,
    Answer,
    Outcome,
    Swap,
    failures,
    result_of,
    run,
)
from client_node.serving_metrics import MeteredTranscribing, ServingMetrics
from deploy.doctor import check_port
from model_core.base import SpeechBase
from model_core.errors import AudioError
from tests.client_node.test_api import FakeTranscriber
from tests.e2e.federation_run import free_ports


def check(outcome: Outcome, requests: int, every: int) -> None:
    assert failures(outcome) == []
    assert len(outcome.answers) == requests
    assert len(outcome.swaps) - 1 == (requests - 1) // every
    assert sum(outcome.counted.values()) == requests  # the metrics missed none
    named = [one.release for one in outcome.answers if one.release]
    assert len(named) == requests // len(FORMATS)
    for release in RELEASES:
        assert outcome.counted[release] >= named.count(release) > 0
    assert result_of(outcome)["headline"]["met"]


def test_no_request_fails_while_releases_swap(tmp_path: Path, nano: SpeechBase) -> None:
    check(run(tmp_path, nano, requests=96, every=8, clients=8), 96, 8)


@pytest.mark.slow
def test_ten_thousand_requests_at_sixteen_clients_with_a_swap_every_500(
    tmp_path: Path, nano: SpeechBase
) -> None:
    outcome = run(tmp_path, nano, requests=10_000, every=500, clients=16)
    check(outcome, 10_000, 500)
    before, after = outcome.resident_bytes
    assert after - before < 64e6  # twenty swaps and nine thousand answers leave no memory behind


def test_the_measure_knows_a_failed_request_and_a_wrong_release() -> None:
    swaps = (Swap(BASE, 0.0, 0.0), Swap("one", 10.0, 11.0))
    good = (Answer(9.0, 10.5, 200, BASE), Answer(10.5, 12.0, 200, "one"))
    bad = (
        Answer(1.0, 2.0, 503, None),
        Answer(1.0, 2.0, 200, "one"),  # it did not serve yet
        Answer(12.0, 13.0, 200, BASE),  # it did not serve any more
    )
    assert failures(Outcome((*good, *bad), swaps, {}, (0, 0))) == list(bad)


def sample(metrics: ServingMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def metered(metrics: ServingMetrics, fake: FakeTranscriber) -> MeteredTranscribing:
    ticks = iter(range(100))
    return MeteredTranscribing(fake, metrics, lambda: float(next(ticks)))


def listen(transcriber: MeteredTranscribing, path: Path) -> None:
    with path.open("rb") as file, transcriber.listen(file, None) as heard:
        list(heard.segments)


def test_metrics_say_which_release_answered_and_what_failed(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    clip.write_bytes(b"sound")
    metrics, fake = ServingMetrics(), FakeTranscriber()
    transcriber = metered(metrics, fake)
    for release in ("r7", "r8", "r8", None):
        fake.release = release
        listen(transcriber, clip)
    fake.error = AudioError("no", remedy="none", code="audio-empty")
    with pytest.raises(AudioError):
        listen(transcriber, clip)
    total = "auricle_recordings_total"
    counts = {
        name: sample(metrics, total, release=name, outcome="ok") for name in ("r7", "r8", "base")
    }
    assert counts == {"r7": 1.0, "r8": 2.0, "base": 1.0}
    assert sample(metrics, total, release="unknown", outcome="audio-empty") == 1.0
    assert sample(metrics, "auricle_recording_seconds_sum", release="r8") == 2.0
    assert sample(metrics, "auricle_audio_seconds_total", release="r8") == 3.0
    assert sample(metrics, "auricle_release_swaps_total") == 2.0
    assert sample(metrics, "auricle_release_serving", release="base") == 1.0
    assert sample(metrics, "auricle_release_serving", release="r8") is None


def test_metrics_are_on_loopback_and_hold_nothing_of_a_recording(tmp_path: Path) -> None:
    clip = tmp_path / "patient-0042.wav"
    clip.write_bytes(b"sound")
    metrics = ServingMetrics()
    listen(metered(metrics, FakeTranscriber()), clip)
    (port,) = free_ports(1)
    stop = metrics.serve(port)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as reply:
            text = reply.read().decode()
    finally:
        stop()
    assert 'auricle_recordings_total{outcome="ok",release="r7"} 1.0' in text
    for private in ("patient", "take", "tablets", str(tmp_path)):
        assert private not in text
    assert check_port(port, "127.0.0.1").ok  # and it is closed again
