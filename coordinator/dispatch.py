"""Dispatch: keeps each site's question of the moment in flight over a link.

The job loop says what each site should be asked now; dispatch sends what is not yet on its way,
asks again after an error, and forgets questions that are no longer asked. It holds no state that a
restart needs: sites answer a repeated question with the same bytes.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping

from coordinator.link import FleetLink, SiteGoneError
from privacy.parcel import Parcel

RETRY_AFTER_S = 1.0

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Question:
    """What a site is asked: `key` tells questions apart, `parcel` is made only when it is sent."""

    key: tuple[str, int]
    parcel: Callable[[], Parcel]


@dataclasses.dataclass(frozen=True)
class Reply:
    """A site's parcel in answer to the question `key`."""

    site: str
    key: tuple[str, int]
    parcel: Parcel


class Dispatch:
    """Questions in flight over `link`, at most one a site."""

    def __init__(self, link: FleetLink, clock: Callable[[], float]) -> None:
        self._link = link
        self._clock = clock
        self._flights: dict[str, tuple[str, tuple[str, int]]] = {}  # message: (site, key)
        self._not_before_s: dict[str, float] = {}

    def ask(self, questions: Mapping[str, Question]) -> frozenset[str]:
        """Send what is not yet asked to sites that are online; returns those newly asked."""
        self._flights = {
            message: (site, key)
            for message, (site, key) in self._flights.items()
            if site in questions and questions[site].key == key
        }
        waiting = questions.keys() - {site for site, _ in self._flights.values()}
        due = {site for site in waiting if self._not_before_s.get(site, 0.0) <= self._clock()}
        asked = sorted(due & self._link.online()) if due else []
        for site in asked:
            question = questions[site]
            try:
                message = self._link.send(site, question.parcel())
            except SiteGoneError:  # revoked since it was seen online
                continue
            self._flights[message] = (site, question.key)
        return frozenset(asked)

    def replies(self) -> Iterator[Reply]:
        """Answers that have arrived to the questions in flight."""
        if not self._flights:
            return
        for delivery in self._link.poll(tuple(self._flights)):
            site, key = self._flights.pop(delivery.message_id)
            if delivery.parcel is None:
                _log.info("site %s gave no answer: %s", site, delivery.error_code)
                self._not_before_s[site] = self._clock() + RETRY_AFTER_S
            else:
                yield Reply(site, key, delivery.parcel)
