"""What the public listener serves of our own: enrolment, key rotation, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import Body, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from coordinator.errors import EnrolmentError
from coordinator.registry import Enrolment, SiteRecord
from coordinator.rotation import Rotation
from privacy.signing import PublicIdentity

ENROL_PATH = "/v1/auricle/enrol"
ROTATE_PATH = "/v1/auricle/rotate"
ENROL_LIMIT_BYTES = 64 * 1024


class EnrolRequest(BaseModel):
    """A site's request to join; `statement` is its DSSE envelope as JSON text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    invite_token: Annotated[str, Field(max_length=256)]
    site: Annotated[str, Field(max_length=63)]
    site_public_pem: Annotated[str, Field(max_length=1024)]
    node_public_openssh: Annotated[str, Field(max_length=1024)]
    statement: Annotated[str, Field(max_length=16 * 1024)]


class EnrolReply(BaseModel):
    """The coordinator's key, which must be the one that the invite names.

    `approved` is false while an operator has yet to approve the site.
    """

    coordinator_public_pem: str
    approved: bool


class RotateRequest(BaseModel):
    """A site's new key; `statement` and `proof` are DSSE envelopes as JSON text."""

    model_config = ConfigDict(extra="forbid", strict=True)

    site: Annotated[str, Field(max_length=63)]
    public_pem: Annotated[str, Field(max_length=1024)]
    statement: Annotated[str, Field(max_length=16 * 1024)]
    proof: Annotated[str, Field(max_length=16 * 1024)]


def create_public_app(
    enrol: Callable[[Enrolment], SiteRecord],
    rotate: Callable[[Rotation], PublicIdentity],
    coordinator_public_pem: str,
) -> FastAPI:
    """The app of what sites ask before they are let in; both raise EnrolmentError to refuse."""
    app = FastAPI(title="Auricle enrolment", docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(EnrolmentError)
    async def refused(_: Request, error: EnrolmentError) -> JSONResponse:
        return JSONResponse({"code": error.code, "problem": error.problem}, status_code=403)

    @app.exception_handler(RequestValidationError)
    async def malformed(_: Request, __: RequestValidationError) -> JSONResponse:
        # FastAPI's own answer repeats what was sent: an invite's token, or text that is no UTF-8.
        return JSONResponse({"code": "request-malformed"}, status_code=422)

    @app.post(ENROL_PATH)
    def post_enrolment(request: Annotated[EnrolRequest, Body()]) -> EnrolReply:
        record = enrol(
            Enrolment(
                invite_token=request.invite_token,
                site=request.site,
                site_public_pem=request.site_public_pem,
                node_public_openssh=request.node_public_openssh,
                statement=request.statement.encode(),
            )
        )
        return EnrolReply(coordinator_public_pem=coordinator_public_pem, approved=record.approved)

    @app.post(ROTATE_PATH)
    def post_rotation(request: Annotated[RotateRequest, Body()]) -> dict[str, str]:
        statement, proof = request.statement.encode(), request.proof.encode()
        rotation = Rotation(request.site, request.public_pem, statement, proof)
        return {"key_id": rotate(rotation).key_id}

    return app
