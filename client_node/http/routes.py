"""`/v1/audio/transcriptions`, `/v1/audio/translations` and `/v1/models`, as OpenAI's API has them.

Platform reference: developers.openai.com/api/reference, audio. What differs is in docs/api.md.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Form, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.sse import format_sse_event

from client_node.http import render
from client_node.http.errors import ApiError, ErrorBody, shaped
from client_node.http.form import MODEL_ID, TranscriptionForm, TranslationForm
from client_node.http.hearing import HearingDesk, Listening, unless_gone
from client_node.recogniser import Asked, Heard
from model_core.tokens import Task
from model_core.transcribe import Segment

_NO_SNIFFING = {"X-Content-Type-Options": "nosniff"}  # a transcript is never a page
_TEXTS = {"srt": render.srt, "vtt": render.vtt}
REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (400, 401, 403, 404, 405, 408, 411, 413, 500, 503)
}
_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The transcript in the format that was asked for.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text"]}},
            "text/plain": {"schema": {"type": "string"}},
            "text/event-stream": {  # of each event
                "schema": {
                    "type": "object",
                    "properties": {"data": {"type": "string"}},
                    "required": ["data"],
                }
            },
        },
    }
}


class Transcribing(Listening, Protocol):
    """What the service needs of `client_node.recogniser.Recogniser`."""

    @property
    def release(self) -> str | None:
        """Release that serves; None for the base."""

    def languages(self) -> Collection[str]:
        """Codes of the languages that serve."""

    def warm_up(self) -> None:
        """Load and verify what serves."""


def audio_router(
    transcriber: Transcribing,
    desk: HearingDesk,
    owner: Callable[[], str],
    *,
    aliases: Sequence[str],
    max_file_bytes: int,
) -> APIRouter:
    """The routes. `owner` names the site; `aliases` are further names of the model."""
    router = APIRouter(prefix="/v1", responses=REFUSALS)

    def model_ids() -> list[str]:
        release = transcriber.release
        return [MODEL_ID, *aliases, *([] if release is None else [release])]

    def require_model(name: str) -> None:
        if name not in model_ids():
            message = "this site serves no such model; GET /v1/models lists those it does"
            raise ApiError(404, message, code="model_not_found", param="model")

    def check(form: TranslationForm) -> None:
        require_model(form.model)
        if (form.file.size or 0) > max_file_bytes:
            message = f"the file is larger than {max_file_bytes // 2**20} MB; send it in parts"
            raise ApiError(413, message, code="file_too_large", param="file")

    def described(name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": 0, "owned_by": owner()}

    @router.post("/audio/transcriptions", responses=_ANSWER, response_model=None)
    async def transcriptions(
        request: Request, form: Annotated[TranscriptionForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        check(form)
        _require_language(transcriber, form.language)
        asked = _asked(form, "transcribe", form.language)
        if form.stream:
            return await _streamed(desk, form, asked)
        return await unless_gone(request, _answer(desk, form, asked))

    @router.post("/audio/translations", responses=_ANSWER, response_model=None)
    async def translations(
        request: Request, form: Annotated[TranslationForm, Form(media_type="multipart/form-data")]
    ) -> Response:
        check(form)
        if set(transcriber.languages()) == {"en"}:
            message = "this model understands English only, so it cannot translate"
            raise ApiError(400, message, code="unsupported_model", param="model")
        return await unless_gone(request, _answer(desk, form, _asked(form, "translate", None)))

    @router.get("/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [described(name) for name in model_ids()]}

    @router.get("/models/{model}")
    def model(model: str) -> dict[str, Any]:
        require_model(model)
        return described(model)

    return router


def _require_language(transcriber: Transcribing, language: str | None) -> None:
    if language is not None and language not in transcriber.languages():
        message = "language: the model does not know it; give a code such as en"
        raise ApiError(400, message, code="unsupported_value", param="language")


def _asked(form: TranslationForm, task: Task, language: str | None) -> Asked:
    return Asked(
        vocabulary=form.vocabulary,
        language=language,
        task=task,
        temperature=form.temperature,
        words=form.wants_words,
        raw=form.raw,
    )


async def _answer(desk: HearingDesk, form: TranslationForm, asked: Asked) -> Response:
    async with desk.listen(form.file, asked) as (heard, coming):
        segments = [segment async for segment in coming]
    if form.response_format == "json":
        return JSONResponse({"text": render.joined(segments)})
    if form.response_format == "text":
        return PlainTextResponse(render.joined(segments) + "\n", headers=_NO_SNIFFING)
    if form.response_format in _TEXTS:
        return PlainTextResponse(_TEXTS[form.response_format](segments), headers=_NO_SNIFFING)
    return JSONResponse(_verbose(form, asked, heard, segments))


def _verbose(
    form: TranslationForm, asked: Asked, heard: Heard, segments: Sequence[Segment]
) -> dict[str, Any]:
    granularities: Sequence[str] = ("segment",)
    if isinstance(form, TranscriptionForm):
        granularities = form.timestamp_granularities
    return render.verbose(
        segments,
        task=asked.task,
        language=heard.language if asked.task == "transcribe" else "en",
        duration_s=heard.duration_s,
        temperature=form.temperature,
        release=heard.release,
        granularities=granularities,
    )


async def _streamed(desk: HearingDesk, form: TranscriptionForm, asked: Asked) -> Response:
    """Server-sent events; a recording that cannot be decoded is refused before any of them."""
    stack = contextlib.AsyncExitStack()
    _, coming = await stack.enter_async_context(desk.listen(form.file, asked))

    async def events() -> AsyncIterator[bytes]:
        async with stack:
            said: list[Segment] = []
            try:
                async for segment in coming:
                    before = " " if said else ""
                    said.append(segment)
                    yield _event("transcript.text.delta", delta=before + render.inert(segment.text))
            except Exception as error:  # noqa: BLE001 told in the stream, whose status has gone
                yield format_sse_event(event="error", data_str=json.dumps(shaped(error).body))
                return
            yield _event("transcript.text.done", text=render.joined(said))

    return StreamingResponse(events(), media_type="text/event-stream")


def _event(kind: str, **fields: str) -> bytes:
    return format_sse_event(data_str=json.dumps({"type": kind, **fields}))
