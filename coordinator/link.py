"""The link to the fleet: how parcels reach sites, whatever carries them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Protocol

from privacy.parcel import Parcel


class SiteGoneError(Exception):
    """The site was revoked between the moment it was seen and now."""


@dataclasses.dataclass(frozen=True)
class Delivery:
    """A site's reply to the message `message_id`, or the code of why there is none.

    Exactly one of `parcel` and `error_code` is set. `site` is the site that the message was sent
    to, never what the reply claims.
    """

    message_id: str
    site: str
    parcel: Parcel | None = None
    error_code: str | None = None


class FleetLink(Protocol):
    """Carries parcels. Neither `send` nor `poll` blocks on a site."""

    def online(self) -> frozenset[str]:
        """Names of the sites that can be reached now."""
        ...

    def send(self, site: str, parcel: Parcel) -> str:
        """Hand a parcel over for `site`; returns the message's id. Raises SiteGoneError."""
        ...

    def poll(self, message_ids: Collection[str]) -> list[Delivery]:
        """Replies that have arrived to any of `message_ids`; each is delivered once."""
        ...

    def close(self) -> None:
        """Release what the link holds. No other method may be called afterwards."""
        ...
