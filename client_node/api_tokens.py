"""Tokens that may use a site's HTTP service, kept as hashes.

A token is 256 random bits, so its SHA-256 is as hard to turn back as the token is to guess: a slow
hash (argon2) protects what people choose, and here would only let a stranger spend the service's
time with made-up tokens. Once a token was ever made, every request needs one: revoking the last
does not open the service.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import secrets
from collections.abc import Callable, Collection
from datetime import datetime

from sqlalchemy import Engine, func, select

from client_node.errors import SiteError
from client_node.tables import TokenRow, open_schema
from privacy.store import reading, writing

PREFIX = "auricle-"
SCOPES = ("transcribe", "page")
_TOKEN_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


@dataclasses.dataclass(frozen=True)
class ApiToken:
    """What is known of a token; never the token itself. Times are ISO 8601."""

    name: str
    scopes: tuple[str, ...]
    created_at: str
    revoked_at: str | None


class TokenBook:
    """The tokens of one site."""

    def __init__(self, engine: Engine, clock: Callable[[], datetime]) -> None:
        open_schema(engine)
        self._engine, self._clock = engine, clock

    def create(self, name: str, scopes: Collection[str]) -> str:
        """Make a token and return it; it can never be shown again.

        Raises SiteError: "token-name" for a name that is taken or odd, "token-scope" for a scope
        that does not exist or for none.
        """
        if not _NAME.fullmatch(name):
            raise SiteError(
                "a token's name is 1 to 64 letters, digits, spaces, dots, hyphens or underscores",
                remedy="name who will use it, such as `ward-3`",
                code="token-name",
            )
        if not scopes or not set(scopes) <= set(SCOPES):
            raise SiteError(
                f"a token's scopes are among {', '.join(SCOPES)}",
                remedy="give --scope transcribe, --scope page, or both",
                code="token-scope",
            )
        token = PREFIX + secrets.token_urlsafe(_TOKEN_BYTES)
        with writing(self._engine) as session:
            if session.scalar(select(TokenRow).where(TokenRow.name == name)) is not None:
                raise SiteError(
                    f"there is or was a token named {name}",
                    remedy="choose another name; a revoked token's name stays with it",
                    code="token-name",
                )
            session.add(
                TokenRow(
                    name=name,
                    sha256=_hash(token),
                    scopes=sorted(set(scopes)),
                    created_at=self._clock().isoformat(timespec="seconds"),
                    revoked_at=None,
                )
            )
        return token

    def tokens(self) -> list[ApiToken]:
        """Every token ever made, oldest first."""
        with reading(self._engine) as session:
            rows = session.scalars(select(TokenRow).order_by(TokenRow.id))
            return [
                ApiToken(row.name, tuple(row.scopes), row.created_at, row.revoked_at)
                for row in rows
            ]

    def revoke(self, name: str) -> None:
        """Refuse a token from the next request on; again is no fault. Raises SiteError."""
        with writing(self._engine) as session:
            row = session.scalar(select(TokenRow).where(TokenRow.name == name))
            if row is None:
                raise SiteError(
                    f"there is no token named {name}",
                    remedy="see `auricle site token list`",
                    code="token-unknown",
                )
            row.revoked_at = row.revoked_at or self._clock().isoformat(timespec="seconds")

    def is_open(self) -> bool:
        """Whether nobody needs a token: none was ever made."""
        with reading(self._engine) as session:
            return not session.scalar(select(func.count()).select_from(TokenRow))

    def scopes_of(self, token: str) -> frozenset[str] | None:
        """What a token allows; None for one that is unknown or revoked.

        It is found by its hash, so that how long the look-up takes tells nothing of the token.
        """
        query = select(TokenRow).where(
            TokenRow.sha256 == _hash(token), TokenRow.revoked_at.is_(None)
        )
        with reading(self._engine) as session:
            row = session.scalar(query)
            return None if row is None else frozenset(row.scopes)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
