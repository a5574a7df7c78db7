"""OpenAI's own Python client, unchanged but for its base URL, against the service on a socket."""

from __future__ import annotations

import io
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import openai
import pytest
from openai.types.audio import Transcription, TranscriptionVerbose

from client_node.api import ServiceLimits
from client_node.api_tokens import TokenBook
from model_core.base import SpeechBase
from privacy.store import open_engine
from tests.client_node.http_harness import site_service, speechlike, wav

CLIP = wav(speechlike(2.0))


def client_of(url: str, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def url(nano: SpeechBase) -> Iterator[str]:
    limits = ServiceLimits(upload_bytes=2**20)
    with site_service(nano, aliases=["whisper-1"], limits=limits) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as client:
        yield client


def ask(client: openai.OpenAI, data: bytes = CLIP, name: str = "visit.wav", **options: Any) -> Any:
    fields: dict[str, Any] = {"model": "auricle", **options}
    return client.audio.transcriptions.create(file=(name, data), **fields)


def test_json_and_text(client: openai.OpenAI) -> None:
    made = ask(client)
    assert isinstance(made, Transcription)
    assert made.text
    assert ask(client, response_format="text") == made.text + "\n"


def test_verbose_json_has_every_field_that_the_client_knows(client: openai.OpenAI) -> None:
    made = ask(client, response_format="verbose_json", timestamp_granularities=["word", "segment"])
    assert isinstance(made, TranscriptionVerbose)
    assert made.language == "english"
    assert made.duration == 2.0
    assert made.segments
    assert made.words
    assert " ".join(segment.text for segment in made.segments) == made.text
    tokens = [token for segment in made.segments for token in segment.tokens]
    assert tokens
    for earlier, later in zip(made.words, made.words[1:], strict=False):
        assert 0 <= earlier.start <= earlier.end <= later.start <= later.end <= 2.0
    for segment in made.segments:
        assert segment.avg_logprob <= 0
        assert 0 <= segment.no_speech_prob <= 1
    assert all(0 <= word.confidence <= 1 for word in made.words)  # type: ignore[attr-defined]


def test_granularity_decides_what_verbose_json_tells(client: openai.OpenAI) -> None:
    words = ask(client, response_format="verbose_json", timestamp_granularities=["word"])
    assert words.words
    assert words.segments is None
    segments = ask(client, response_format="verbose_json")
    assert segments.segments
    assert segments.words is None


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_are_read_by_ffmpeg(client: openai.OpenAI, form: str) -> None:
    verbose = ask(client, response_format="verbose_json")
    subtitles = ask(client, response_format=form)
    with av.open(io.BytesIO(subtitles.encode()), format={"vtt": "webvtt"}.get(form, form)) as read:
        cues = [packet for packet in read.demux() if packet.size]
        times = [float(cue.pts * cue.time_base) for cue in cues]
    assert times == [pytest.approx(segment.start, abs=1e-3) for segment in verbose.segments]


def test_streaming_tells_deltas_that_add_up_to_the_text(client: openai.OpenAI) -> None:
    events = list(ask(client, wav(speechlike(60.0, 8_000), 8_000), stream=True, model="whisper-1"))
    *deltas, done = events
    assert done.type == "transcript.text.done"
    assert len(deltas) > 1
    assert {event.type for event in deltas} == {"transcript.text.delta"}
    assert "".join(event.delta for event in deltas) == done.text


def test_streaming_refuses_a_bad_file_before_the_stream(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, b"no sound", stream=True)
    assert caught.value.code == "audio-unreadable"


def test_vocabulary_language_and_temperature_are_taken(client: openai.OpenAI) -> None:
    plain = ask(client).text
    assert ask(client, language="en", temperature=0).text == plain
    assert ask(client, prompt="metformin, lisinopril").text != plain
    assert ask(client, keywords=["metformin", "lisinopril"]).text != plain
    # The nano model's noise is nearly uniform: two draws of many tokens are never equal.
    assert len({ask(client, temperature=1.0).text for _ in range(2)}) == 2


@pytest.mark.parametrize(
    ("options", "kind", "code", "param"),
    [
        ({"response_format": "xml"}, openai.BadRequestError, "invalid_value", "response_format"),
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found", "model"),
        ({"language": "xx"}, openai.BadRequestError, "unsupported_value", "language"),
        ({"temperature": 2}, openai.BadRequestError, "invalid_value", "temperature"),
        ({"include": ["logprobs"]}, openai.BadRequestError, "unknown_parameter", "include[]"),
        ({"data": b""}, openai.BadRequestError, "audio-empty", "file"),
        ({"data": CLIP[:44]}, openai.BadRequestError, "audio-empty", "file"),
        ({"data": bytes(2**20 + 1)}, openai.APIStatusError, "file_too_large", "file"),
    ],
)  # fmt: skip
def test_errors_raise_what_openais_would(
    client: openai.OpenAI, options: dict[str, Any], kind: type[Exception], code: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        ask(client, **options)
    error = caught.value
    assert isinstance(error, openai.APIStatusError)
    assert (error.code, error.param, error.type) == (code, param, "invalid_request_error")


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI, not here
def test_an_english_base_does_not_translate(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.translations.create(file=("visit.wav", CLIP), model="auricle")
    assert caught.value.param == "model"


def test_models_are_listed_and_retrieved(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["auricle", "whisper-1"]
    assert client.models.retrieve("whisper-1").owned_by == "north"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_tokens(nano: SpeechBase, tmp_path: Path) -> None:
    engine = open_engine(f"sqlite:///{tmp_path / 'auricle.db'}")
    book = TokenBook(engine, lambda: datetime(2026, 1, 1, tzinfo=UTC))
    with site_service(nano, access=book) as url:

        def asked_with(key: str) -> Any:
            with client_of(url, key) as client:
                return ask(client)

        assert asked_with("unused").text
        token, page = book.create("ward-3", ["transcribe"]), book.create("desk", ["page"])
        assert asked_with(token).text
        for key, kind, code in (
            ("unused", openai.AuthenticationError, "invalid_api_key"),
            (page, openai.PermissionDeniedError, "missing_scope"),
        ):
            with pytest.raises(kind) as caught:
                asked_with(key)
            assert isinstance(caught.value, openai.APIStatusError)
            assert caught.value.code == code
        book.revoke("ward-3")
        with pytest.raises(openai.AuthenticationError):
            asked_with(token)
    engine.dispose()


def test_a_full_service_is_waited_for(nano: SpeechBase) -> None:
    """The client tries again after 503 as it does with OpenAI's own service."""
    with (
        site_service(nano, limits=ServiceLimits(recordings=1)) as url,
        client_of(url) as client,
        client.with_options(max_retries=5) as patient,
    ):
        stream = ask(client, wav(speechlike(60.0, 8_000), 8_000), stream=True)
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client)
        assert (caught.value.status_code, caught.value.code) == (503, "overloaded")
        assert caught.value.response.headers["retry-after"] == "1"
        for _ in stream:
            pass
        assert ask(patient).text
