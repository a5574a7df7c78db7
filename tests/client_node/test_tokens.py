"""Tokens: what is kept, what they open, and what a foreign page cannot do."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from client_node.api_tokens import PREFIX, TokenBook
from client_node.errors import SiteError
from client_node.http.guard import TokenGuard
from deploy.cli import main as cli
from privacy.store import open_engine
from tests.client_node.test_api import Client, FakeTranscriber

NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = open_engine(f"sqlite:///{tmp_path / 'auricle.db'}")
    yield engine
    engine.dispose()


@pytest.fixture
def book(engine: Engine) -> TokenBook:
    return TokenBook(engine, lambda: NOW)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def basic(token: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"any:{token}".encode()).decode()}


def test_a_token_is_shown_once_and_kept_as_a_hash(
    book: TokenBook, engine: Engine, tmp_path: Path
) -> None:
    token = book.create("ward-3", ["transcribe"])
    assert token.startswith(PREFIX)
    assert len(token) > 40
    assert book.create("ward-4", ["page"]) != token
    engine.dispose()
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert token.removeprefix(PREFIX).encode() not in stored
    (first, second) = book.tokens()
    assert (first.name, first.scopes, first.created_at, first.revoked_at) == (
        "ward-3",
        ("transcribe",),
        "2026-01-01T00:00:00+00:00",
        None,
    )
    assert second.name == "ward-4"


def test_scopes_revocation_and_a_service_that_stays_closed(book: TokenBook) -> None:
    assert book.is_open()
    token = book.create("desk", ["page", "transcribe", "page"])
    assert not book.is_open()
    assert book.scopes_of(token) == {"page", "transcribe"}
    assert book.scopes_of(token + "x") is None
    assert book.scopes_of("") is None
    book.revoke("desk")
    book.revoke("desk")
    assert book.scopes_of(token) is None
    assert not book.is_open()


@pytest.mark.parametrize(
    ("name", "scopes", "code"),
    [
        ("", ["page"], "token-name"),
        ("a\nb", ["page"], "token-name"),
        ("taken", ["page"], "token-name"),
        ("new", [], "token-scope"),
        ("new", ["admin"], "token-scope"),
    ],
)
def test_odd_tokens_are_not_made(book: TokenBook, name: str, scopes: list[str], code: str) -> None:
    book.create("taken", ["page"])
    book.revoke("taken")
    with pytest.raises(SiteError) as caught:
        book.create(name, scopes)
    assert caught.value.code == code
    with pytest.raises(SiteError):
        book.revoke("never made")


def test_every_path_but_health_needs_its_scope(book: TokenBook) -> None:
    client = Client(FakeTranscriber(), access=book)
    assert client.get("/").status_code == client.get("/v1/models").status_code == 200
    api, page = book.create("api", ["transcribe"]), book.create("page", ["page"])
    for headers, status in (({}, 401), (bearer("x"), 401), (bearer(page), 403), (bearer(api), 200)):
        answer = client.get("/v1/models", headers=headers)
        assert answer.status_code == status
        assert status == 200 or set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert client.get("/health").status_code == 200
    for path in ("/openapi.json", "/site", "/nowhere", "/"):
        assert client.get(path, headers=bearer(api)).status_code == 403
        assert client.get(path).status_code == 401
    assert client.get("/", headers=bearer(page)).status_code == 200


def test_a_browser_is_asked_for_the_token_of_a_page(book: TokenBook) -> None:
    token = book.create("desk", ["page", "transcribe"])
    client = Client(FakeTranscriber(), access=book)
    assert client.get("/").headers["www-authenticate"].startswith("Basic ")
    assert client.get("/v1/models").headers["www-authenticate"] == "Bearer"
    assert client.get("/", headers=basic(token)).status_code == 200
    for odd in ("Basic", "Basic !", "Basic " + base64.b64encode(b"\xff:\xff").decode(), "Digest x"):
        assert client.get("/", headers={"authorization": odd}).status_code == 401


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_a_page_of_another_site_cannot_post_here(site: str) -> None:
    class Open:
        def is_open(self) -> bool:
            return True

        def scopes_of(self, token: str) -> None:
            return None

    transcriber = FakeTranscriber()
    client = Client(transcriber, access=Open())
    url, files = "/v1/audio/transcriptions", {"file": ("a.wav", b"RIFF")}
    refused = client.post(url, files=files, headers={"sec-fetch-site": site})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "cross_site")
    assert transcriber.asked == []
    own = client.post(url, files=files, headers={"sec-fetch-site": "same-origin"})
    assert own.status_code == 200


@pytest.mark.parametrize(
    ("token", "told"),
    [("good", ["inner"]), ("bad", ["websocket.close"]), ("", ["websocket.close"])],
)
def test_websockets_are_guarded_too(token: str, told: list[str]) -> None:
    seen: list[str] = []

    class OneToken:
        def is_open(self) -> bool:
            return False

        def scopes_of(self, token: str) -> frozenset[str] | None:
            return frozenset({"transcribe"}) if token == "good" else None

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append("inner")

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        seen.append(message["type"])

    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    scope = {"type": "websocket", "path": "/v1/audio/stream", "headers": headers}
    guard = TokenGuard(inner, OneToken(), lambda path: "transcribe")
    asyncio.run(guard(scope, receive, send))
    assert seen == told


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from client_node.home import SiteHome, SiteSettings

    home = SiteHome(tmp_path / "site")
    home.create()
    SiteSettings(site="north", base_folder=str(tmp_path)).save(home.settings)

    def run(*words: str, status: int = 0) -> dict[str, Any]:
        capsys.readouterr()
        assert cli.run([*words, "--home", str(home.root), "--json"]) == status
        fields: dict[str, Any] = json.loads(capsys.readouterr().out)
        return fields

    assert run("site", "token", "list") == {"tokens": []}
    refused = run("site", "serve", "--host", "0.0.0.0", status=40)
    assert refused["error"]["code"] == "token-missing"
    made = run("site", "token", "create", "ward-3", "--scope", "transcribe")
    assert made["token"].startswith(PREFIX)
    assert run("site", "token", "revoke", "ward-3") == {"name": "ward-3"}
    (listed,) = run("site", "token", "list")["tokens"]
    assert (listed["name"], listed["scopes"]) == ("ward-3", ["transcribe"])
    assert listed["revoked_at"]
    assert made["token"] not in json.dumps(listed)
