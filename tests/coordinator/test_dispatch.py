"""Dispatch: questions to sites that may be gone by the time they are sent."""

from __future__ import annotations

from coordinator.dispatch import Dispatch, Question
from coordinator.link import SiteGoneError
from privacy.parcel import Parcel


class LinkToOne:
    """Both sites are seen online; `south` is revoked before anything reaches it."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def online(self):
        return frozenset({"north", "south"})

    def send(self, site, parcel):
        if site == "south":
            raise SiteGoneError(site)
        self.sent.append(site)
        return f"to {site}"

    def poll(self, message_ids):
        return []

    def close(self):
        pass


def test_a_site_that_is_revoked_while_it_is_asked_stops_nobody():
    link = LinkToOne()
    dispatch = Dispatch(link, lambda: 0.0)
    question = Question(("offer", 1), lambda: Parcel("offer", b""))
    dispatch.ask({"south": question, "north": question})
    assert link.sent == ["north"]
