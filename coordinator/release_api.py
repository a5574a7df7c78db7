"""The operators' routes for releases; mounted in the admin app, behind its token."""

from __future__ import annotations

from typing import Annotated

from fastapi import Body, FastAPI
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict

from coordinator.operations import Operations
from coordinator.release_desk import ReleaseLine, ReleaseView
from privacy.parcel import ReleaseEvaluation


class PublishRequest(BaseModel):
    """How a release did on the public test set; without it, what it was held with stands."""

    model_config = ConfigDict(extra="forbid")

    evaluation: ReleaseEvaluation | None = None


class WithdrawRequest(BaseModel):
    """Why a release is withdrawn: a code such as worse-on-numbers."""

    model_config = ConfigDict(extra="forbid")

    code: str


def add_release_routes(app: FastAPI, operations: Operations) -> None:
    """List, show, fetch, publish and withdraw."""

    @app.get("/admin/releases")
    def get_releases() -> list[ReleaseLine]:
        return operations.releases.overview()

    @app.get("/admin/releases/{release}")
    def get_release(release: str) -> ReleaseView:
        return operations.releases.show(release)

    @app.get("/admin/releases/{release}/adapter")
    def get_adapter(release: str) -> Response:
        adapter = operations.releases.adapter(release)
        return Response(adapter, media_type="application/octet-stream")

    @app.post("/admin/releases/{release}/publish", status_code=204)
    def publish(release: str, request: Annotated[PublishRequest, Body()]) -> None:
        operations.releases.publish(release, request.evaluation)
        operations.wake()

    @app.post("/admin/releases/{release}/withdraw", status_code=204)
    def withdraw(release: str, request: Annotated[WithdrawRequest, Body()]) -> None:
        operations.releases.withdraw(release, request.code)
        operations.wake()
