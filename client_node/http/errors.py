"""Every failure leaves in OpenAI's shape; none carries a path or an exception's text."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from model_core.errors import ModelCoreError
from privacy.errors import AuricleError

AUDIO_PROBLEMS = {
    "audio-empty": "the file holds no sound",
    "audio-missing": "the file did not arrive",
    "audio-too-long": "the recording is too long; send it in parts",
    "audio-too-costly": "the file cannot be decoded within the limits of time and memory",
}
_FAULT_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
_SHOWN_NAME = 64  # characters of a parameter's name that are repeated to its sender


class ErrorDetail(BaseModel):
    """What went wrong, by OpenAI's fields."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """Body of every answer that is no success."""

    error: ErrorDetail


class ApiError(Exception):
    """An error in OpenAI's shape. `status` is HTTP's; `param` names the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers
        kind = "invalid_request_error" if status < 500 else "server_error"
        detail = ErrorDetail(message=message, type=kind, param=param, code=code)
        self.body = ErrorBody(error=detail).model_dump()

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body, status_code=self.status, headers=self.headers)


def shaped(error: Exception) -> ApiError:
    """What the client is told of any failure."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, RequestValidationError):
        return _malformed(error)
    if isinstance(error, HTTPException):
        headers = dict(error.headers) if error.headers else None
        return ApiError(error.status_code, str(error.detail), headers=headers)
    if isinstance(error, AuricleError | ModelCoreError):
        return _known(error)
    return ApiError(500, "the service failed; the recording was not kept", code="internal")


def _malformed(error: RequestValidationError) -> ApiError:
    fault = error.errors()[0]
    place = fault["loc"]
    name = str(place[1] if len(place) > 1 else place[0])[:_SHOWN_NAME]
    code = _FAULT_CODES.get(fault["type"], "invalid_value")
    return ApiError(400, f"{name}: {fault['msg']}", code=code, param=name)


def _known(error: AuricleError | ModelCoreError) -> ApiError:
    if error.code.startswith("audio-"):
        message = AUDIO_PROBLEMS.get(error.code, "the file is not audio that can be read")
        return ApiError(400, message, code=error.code, param="file")
    message = "this site cannot serve now; its operator should run `auricle site status`"
    return ApiError(503, message, code=error.code)


def add_error_handlers(app: FastAPI) -> None:
    """Shape all failures of an app."""

    def answer(_: Request, error: Exception) -> JSONResponse:
        return shaped(error).response()

    for kind in (
        ApiError,
        RequestValidationError,
        HTTPException,
        AuricleError,
        ModelCoreError,
        Exception,
    ):
        app.add_exception_handler(kind, answer)
