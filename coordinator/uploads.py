"""Which answers of sites are still on their way in, and which sites have begun anew.

Flower hands out an answer, and forgets its question, as soon as the answer is announced, whether or
not its bytes have come. A site that lost the connection then and sends it again is told that all is
well, and its bytes never come. So nothing may be fetched before it is whole.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable


class Uploads:
    """Answers by session, at most `limit` of them, and nodes that started. For any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._missing: OrderedDict[str, set[str]] = OrderedDict()  # session: objects still to come
        self._sessions: OrderedDict[str, str] = OrderedDict()  # question: session of its answer
        self._started: set[int] = set()

    def __len__(self) -> int:
        """How many answers have been announced and are not whole."""
        with self._lock:
            return len(self._missing)

    def announce(self, questions: Iterable[str]) -> None:
        """A site is about to announce its answers to these questions."""
        with self._lock:
            self._sessions |= dict.fromkeys(questions, "")
            while len(self._sessions) > self._limit:
                self._sessions.popitem(last=False)

    def refuse(self, questions: Iterable[str]) -> None:
        """Flower did not take what was announced."""
        with self._lock:
            for question in questions:
                self._sessions.pop(question, None)

    def begin(self, session: str, questions: Iterable[str], objects: Iterable[str]) -> bool:
        """Flower waits for `objects` in `session`; whether that is none, and the answer whole."""
        with self._lock:
            self._sessions |= dict.fromkeys(questions, session)
            self._missing[session] = set(objects)
            if len(self._missing) > self._limit:  # of sites that never went on with theirs
                self._missing.popitem(last=False)
            return self._whole(session)

    def take(self, session: str, object_id: str) -> bool:
        """Flower has taken an object; whether it was the last of its answer."""
        with self._lock:
            self._missing.get(session, set()).discard(object_id)
            return self._whole(session)

    def unfinished(self, question: str) -> bool:
        """Whether the answer to `question` was announced and is not whole."""
        with self._lock:
            return question in self._sessions

    def started(self, node: int) -> None:
        """A node's process has started: what it was asked before, it no longer knows."""
        with self._lock:
            self._started.add(node)

    def forget_started(self, nodes: Collection[int]) -> None:
        """These nodes are asked anew: that they started before matters no more."""
        with self._lock:
            self._started.difference_update(nodes)

    def take_started(self) -> frozenset[int]:
        """The nodes that have started since the last call."""
        with self._lock:
            started, self._started = frozenset(self._started), set()
            return started

    def _whole(self, session: str) -> bool:
        if self._missing.get(session):
            return False
        self._missing.pop(session, None)
        for question in [q for q, of in self._sessions.items() if of == session]:
            del self._sessions[question]
        return True
