"""A link to sites in this process: for tests, benchmarks and simulations."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from coordinator.link import Delivery
from privacy.errors import AuricleError
from privacy.parcel import Parcel

Handler = Callable[[Parcel], Parcel]


class LocalLink:
    """FleetLink over plain callables, one per site, run in a thread pool.

    A handler's AuricleError becomes a delivery with its code alone, as on the wire.
    """

    def __init__(self, sites: Mapping[str, Handler], workers: int = 4) -> None:
        self._sites = sites
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="local-link")
        self._replies: dict[str, tuple[str, Future[Parcel]]] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def online(self) -> frozenset[str]:
        """Every site of the mapping; the mapping may change between calls."""
        return frozenset(self._sites)

    def send(self, site: str, parcel: Parcel) -> str:
        """Queue `parcel` for `site`'s handler."""
        with self._lock:
            message_id = f"local-{next(self._numbers)}"
            self._replies[message_id] = (site, self._pool.submit(self._sites[site], parcel))
        return message_id

    def poll(self, message_ids: Collection[str]) -> list[Delivery]:
        """Replies of the handlers that have finished."""
        with self._lock:
            done = [m for m in message_ids if m in self._replies and self._replies[m][1].done()]
            finished = [(m, *self._replies.pop(m)) for m in done]
        return [self._delivery(*reply) for reply in finished]

    def close(self) -> None:
        """Wait for running handlers, drop queued ones."""
        self._pool.shutdown(cancel_futures=True)

    @staticmethod
    def _delivery(message_id: str, site: str, reply: Future[Parcel]) -> Delivery:
        try:
            return Delivery(message_id, site, parcel=reply.result())
        except AuricleError as error:
            return Delivery(message_id, site, error_code=error.code)
