"""Asks the coordinator that runs on this machine, over its loopback admin listener."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import httpx

from deploy.errors import CommandError, OfflineError

TIMEOUT_S = 120.0  # planning a job loads the base model


class AdminClient:
    """One conversation with the admin listener; use as a context manager."""

    def __init__(self, url: str, token: str, transport: httpx.BaseTransport | None = None) -> None:
        self._url = url
        # The listener is on loopback: a proxy from the environment must not see the token.
        self._client = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=TIMEOUT_S,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._client.close()

    def get(self, path: str) -> Any:
        """GET a resource. Raises OfflineError, or CommandError with the coordinator's words."""
        return self._ask("GET", path, None)

    def get_bytes(self, path: str) -> bytes:
        """GET a resource whose answer is kept byte for byte. Raises like `get`."""
        return self._reply("GET", path, None).content

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """POST to a resource. Raises like `get`."""
        return self._ask("POST", path, body)

    def post_for_bytes(self, path: str, body: dict[str, Any]) -> bytes:
        """POST to a resource whose answer is kept byte for byte. Raises like `get`."""
        return self._reply("POST", path, body).content

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        reply = self._reply(method, path, body)
        return reply.json() if reply.content else None

    def _reply(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            reply = self._client.request(method, path, json=body)
        except httpx.TransportError as error:
            raise OfflineError(
                f"no coordinator answers at {self._url} ({type(error).__name__})",
                remedy="start it with `auricle coordinator start`, in a terminal of its own",
            ) from error
        if reply.is_success:
            return reply
        raise _refusal(reply)


def _refusal(reply: httpx.Response) -> CommandError:
    try:
        told = reply.json()
        return CommandError(str(told["problem"]), remedy=str(told["remedy"]), code=told["code"])
    except (ValueError, KeyError, TypeError):
        return CommandError(
            f"the coordinator answered HTTP {reply.status_code}",
            remedy="see the coordinator's log",
            code="coordinator-failed",
        )
