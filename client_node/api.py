"""The site's HTTP service: OpenAI's audio API and one page, both for this building only.

`POST /v1/audio/transcriptions` follows the OpenAI audio API (platform.openai.com/docs/api-reference
/audio), errors included, so that its clients work by changing a base URL. What a client asks for
and this service cannot do is refused, never ignored. Host names are checked, so that a web page
elsewhere cannot reach the service by rebinding its own name to this address.
"""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, FastAPI, File, Form, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from client_node.body_limit import BodyLimit
from client_node.inference import Transcription
from client_node.page import render_page
from client_node.status import SiteStatus
from model_core.errors import ModelCoreError
from privacy.errors import AuricleError

MAX_UPLOAD_BYTES = 25 * 1024 * 1024
FORM_OVERHEAD_BYTES = 64 * 1024  # field names, boundaries and the other fields of the form
MODEL_ID = "auricle"
LANGUAGE = "en"
LOCAL_HOSTS = ("localhost", "127.0.0.1", "[::1]")
AUDIO_PROBLEMS = {
    "audio-empty": "the file holds no sound",
    "audio-missing": "the file did not arrive",
}


RESPONSE_FORMATS = ("json", "text", "verbose_json")


class Transcribing(Protocol):
    """What the service needs of `client_node.inference.SiteTranscriber`."""

    @property
    def release(self) -> str | None:
        """Release that serves; None for the base."""

    def warm_up(self) -> None:
        """Load and verify what serves."""

    def transcribe(self, path: Path) -> Transcription:
        """Transcribe one file."""


class ApiError(Exception):
    """An error in OpenAI's shape. `status` is HTTP's; `param` names the field at fault."""

    def __init__(
        self, status: int, message: str, *, code: str | None = None, param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {
                "message": message,
                "type": "invalid_request_error" if status < 500 else "server_error",
                "param": param,
                "code": code,
            }
        }


def make_app(
    transcriber: Transcribing,
    status: Callable[[], SiteStatus],
    allowed_hosts: Sequence[str] = LOCAL_HOSTS,
    *,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The site's service. `status` is asked at every view of the page.

    `routers` are further services of the site, such as streaming. What stands here for every
    route stands for theirs too: host names, body limit, errors in OpenAI's shape. A path that
    one of them serves is theirs, `/` included.
    """
    app = FastAPI(title="Auricle site", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_UPLOAD_BYTES + FORM_OVERHEAD_BYTES)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(allowed_hosts))
    _add_error_handlers(app)
    for router in routers:
        app.include_router(router)
    _add_transcriptions(app, transcriber)

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        ids = [MODEL_ID] if transcriber.release is None else [MODEL_ID, transcriber.release]
        site = status().site
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": 0, "owned_by": site} for name in ids
            ],
        }

    @app.get("/health")
    def health() -> dict[str, str | None]:
        transcriber.warm_up()
        return {"status": "ok", "release": transcriber.release}

    @app.get("/", response_class=HTMLResponse)
    def page() -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        policy = (
            f"default-src 'none'; style-src 'nonce-{nonce}'; script-src 'nonce-{nonce}'; "
            "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
        )
        headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return HTMLResponse(render_page(status(), nonce), headers=headers)

    return app


def _add_transcriptions(app: FastAPI, transcriber: Transcribing) -> None:
    @app.post("/v1/audio/transcriptions", response_model=None)
    def transcriptions(
        *,
        file: Annotated[UploadFile, File()],
        model: Annotated[str, Form()] = MODEL_ID,
        response_format: Annotated[str, Form()] = "json",
        language: Annotated[str, Form()] = LANGUAGE,
        prompt: Annotated[str, Form()] = "",
        temperature: Annotated[float, Form()] = 0.0,
        stream: Annotated[bool, Form()] = False,
    ) -> Response:
        _refuse_unsupported(transcriber, model, response_format, language)
        _require(not prompt, "prompt", "prompts are not supported; set the site's vocabulary")
        _require(temperature == 0, "temperature", "decoding is greedy: only 0 is supported")
        _require(not stream, "stream", "streaming is not supported")
        if (file.size or 0) > MAX_UPLOAD_BYTES:
            raise _too_large()
        return _answer(_transcribe_upload(transcriber, file), response_format)


def _refuse_unsupported(
    transcriber: Transcribing, model: str, response_format: str, language: str
) -> None:
    if model not in (MODEL_ID, transcriber.release):
        raise ApiError(404, "this site serves no such model", code="model_not_found", param="model")
    _require(
        response_format in RESPONSE_FORMATS,
        "response_format",
        f"must be one of {', '.join(RESPONSE_FORMATS)}",
    )
    _require(language == LANGUAGE, "language", f"the base model knows only {LANGUAGE!r}")


def _require(holds: bool, param: str, what: str) -> None:
    if not holds:
        raise ApiError(400, f"{param}: {what}", code="unsupported_value", param=param)


def _too_large() -> ApiError:
    megabytes = MAX_UPLOAD_BYTES // 2**20
    return ApiError(
        413,
        f"the file is larger than {megabytes} MB; send it in parts",
        code="file_too_large",
        param="file",
    )


def _transcribe_upload(transcriber: Transcribing, file: UploadFile) -> Transcription:
    with tempfile.TemporaryDirectory(prefix="auricle-") as folder:
        path = Path(folder) / "upload"  # the client's file name is never used as a path
        with path.open("wb") as copy:
            shutil.copyfileobj(file.file, copy)
        return transcriber.transcribe(path)


def _answer(made: Transcription, response_format: str) -> Response:
    transcript = made.transcript
    if response_format == "text":
        return PlainTextResponse(transcript.text + "\n")
    if response_format == "json":
        return JSONResponse({"text": transcript.text})
    segments = [
        {"id": number, "start": segment.start_s, "end": segment.end_s, "text": segment.text}
        for number, segment in enumerate(transcript.segments)
    ]
    return JSONResponse(
        {
            "task": "transcribe",
            "language": "english",
            "duration": transcript.duration_s,
            "text": transcript.text,
            "segments": segments,
            "release": made.release,
        }
    )


def _add_error_handlers(app: FastAPI) -> None:
    """Every failure leaves in OpenAI's shape; none carries a path or an exception's text."""

    @app.exception_handler(ApiError)
    def refused(_: Request, error: ApiError) -> JSONResponse:
        return JSONResponse(error.body, status_code=error.status)

    @app.exception_handler(RequestValidationError)
    def malformed(_: Request, error: RequestValidationError) -> JSONResponse:
        field = str(error.errors()[0]["loc"][-1])
        shaped = ApiError(400, f"{field}: missing or malformed", code="invalid", param=field)
        return JSONResponse(shaped.body, status_code=400)

    @app.exception_handler(HTTPException)
    def no_such_route(_: Request, error: HTTPException) -> JSONResponse:
        shaped = ApiError(error.status_code, str(error.detail), code=None)
        return JSONResponse(shaped.body, status_code=error.status_code)

    @app.exception_handler(AuricleError)
    @app.exception_handler(ModelCoreError)
    def known(_: Request, error: AuricleError | ModelCoreError) -> JSONResponse:
        if error.code.startswith("audio-"):
            message = AUDIO_PROBLEMS.get(error.code, "the file is not audio that can be read")
            shaped = ApiError(400, message, code=error.code, param="file")
        else:
            message = "this site cannot serve now; its operator should run `auricle site status`"
            shaped = ApiError(503, message, code=error.code)
        return JSONResponse(shaped.body, status_code=shaped.status)

    @app.exception_handler(Exception)
    def unexpected(_: Request, __: Exception) -> JSONResponse:
        shaped = ApiError(500, "the service failed; the recording was not kept", code="internal")
        return JSONResponse(shaped.body, status_code=500)
