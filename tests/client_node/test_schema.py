"""The OpenAPI document, and the service held to it by schemathesis' generated requests."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from client_node.api import make_app
from tests.client_node.test_api import FakeTranscriber, site_status

CHECKS: list[Any] = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
]
APP = make_app(FakeTranscriber(), site_status, ("localhost", "testserver"))


async def living(scope: Any, receive: Any, send: Any) -> None:
    """The service, never stopped: schemathesis starts and stops it for each request."""
    if scope["type"] != "lifespan":
        await APP(scope, receive, send)
        return
    for _ in range(2):  # startup, shutdown
        message = await receive()
        await send({"type": f"{message['type']}.complete"})


schema = schemathesis.openapi.from_asgi("/openapi.json", living)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@schema.parametrize()
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
def test_every_answer_is_as_described(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)


def test_the_document_names_every_route_and_field_of_the_audio_api() -> None:
    document = APP.openapi()
    assert {"/v1/audio/transcriptions", "/v1/audio/translations", "/v1/models", "/health"} <= set(
        document["paths"]
    )
    fields = document["components"]["schemas"]["TranscriptionForm"]["properties"]
    assert set(fields) == {
        "file",
        "model",
        "prompt",
        "response_format",
        "temperature",
        "language",
        "keywords[]",
        "timestamp_granularities[]",
        "stream",
    }
