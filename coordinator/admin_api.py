"""The operators' API, on loopback alone, behind the bearer token of admin.token."""

from __future__ import annotations

import json
import secrets
from typing import Annotated, Any

from fastapi import Body, Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field

from coordinator.errors import CoordinatorError
from coordinator.operations import Operations, SiteOverview
from coordinator.release_api import add_release_routes
from coordinator.request import parse_request
from coordinator.status import JobStatus
from privacy.errors import AuricleError

ADMIN_PREFIX = "/admin/"
ADMIN_LIMIT_BYTES = 1024 * 1024
LEDGER_PAGE = 1000
DAY_S = 86400.0
UNAUTHORISED = "admin-unauthorised"

_BEARER = HTTPBearer(auto_error=False)


class InviteRequest(BaseModel):
    """Which site to invite, for how long (seconds), and whether it needs no approval then."""

    model_config = ConfigDict(extra="forbid")

    site: str
    valid_for_s: Annotated[float, Field(gt=0, le=90 * DAY_S)] = 7 * DAY_S
    approve: bool = False


def create_admin_app(operations: Operations, token: str) -> FastAPI:
    """The admin app. Every route answers 401 without the token, errors as code, problem, remedy."""

    def authorised(
        credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)],
    ) -> None:
        given = credentials.credentials if credentials else ""
        if not secrets.compare_digest(given.encode(), token.encode()):
            raise CoordinatorError(
                "the admin token is missing or wrong",
                remedy="send the content of admin.token as a bearer token",
                code=UNAUTHORISED,
            )

    app = FastAPI(title="Auricle coordinator", dependencies=[Depends(authorised)], docs_url=None)
    app.add_exception_handler(AuricleError, _error_reply)
    _add_job_routes(app, operations)
    _add_site_routes(app, operations)
    add_release_routes(app, operations)

    @app.get("/admin/ledger")
    def get_ledger(
        start: Annotated[int, Query(ge=0)] = 0, end: Annotated[int | None, Query(ge=0)] = None
    ) -> dict[str, Any]:
        return operations.ledger(start, min(end or start + LEDGER_PAGE, start + LEDGER_PAGE))

    return app


def _add_job_routes(app: FastAPI, operations: Operations) -> None:
    @app.post("/admin/jobs", status_code=201)
    def post_job(fields: Annotated[dict[str, Any], Body()]) -> dict[str, str]:
        return {"job": operations.submit(parse_request(fields))}

    @app.get("/admin/jobs")
    def get_jobs() -> list[str]:
        return operations.jobs()

    @app.get("/admin/jobs/{job}")
    def get_job(job: str) -> JobStatus:
        return operations.status(job)

    @app.get("/admin/jobs/{job}/plan")
    def get_plan(job: str) -> dict[str, Any]:
        plan: dict[str, Any] = json.loads(operations.job(job).plan.to_json())
        return plan

    @app.post("/admin/jobs/{job}/resume", status_code=204)
    def resume_job(job: str) -> None:
        operations.resume(job)


def _add_site_routes(app: FastAPI, operations: Operations) -> None:
    @app.get("/admin/sites")
    def get_sites() -> list[SiteOverview]:
        return operations.sites()

    @app.post("/admin/sites/{site}/approve")
    def approve_site(site: str) -> dict[str, str]:
        return {"key_id": operations.approve(site).identity.key_id}

    @app.post("/admin/sites/{site}/revoke", status_code=204)
    def revoke_site(site: str) -> None:
        operations.revoke(site)

    @app.post("/admin/sites/{site}/restore", status_code=204)
    def restore_site(site: str) -> None:
        operations.restore(site)

    @app.post("/admin/invites", status_code=201)
    def post_invite(request: Annotated[InviteRequest, Body()]) -> Response:
        invite = operations.invite(request.site, request.valid_for_s, approve=request.approve)
        return Response(invite, status_code=201, media_type="application/json")


def _error_reply(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, AuricleError)  # registered for these alone
    not_found = error.code.endswith("-unknown")
    status = 401 if error.code == UNAUTHORISED else 404 if not_found else 400
    body = {"code": error.code, "problem": error.problem, "remedy": error.remedy}
    return JSONResponse(body, status_code=status)
