"""Tells sites of releases outside of jobs: the current one where it was missed, and withdrawals.

A job hands its release to those who took part while they are there. Whoever was not, or enrolled
later, is offered the current release at the next contact; a withdrawal goes to every site. Each is
answered once, and the answer is kept; nothing else is state, so a killed coordinator asks again.

An offer shows the site the head of our ledger, and waits until no job runs: a round's order that
was sealed before it and arrives after it would show an older head, which a site has to refuse.
"""

from __future__ import annotations

import functools
import logging
from datetime import UTC, datetime

from coordinator.answers import answer_code, held_size
from coordinator.dispatch import Dispatch, Question, Reply
from coordinator.job import Tools
from coordinator.link import FleetLink, SiteGoneError
from coordinator.release import manifest_sha256
from coordinator.release_records import AnswerKind, SiteAnswer, StoredRelease, current_of
from privacy.parcel import Parcel, ParcelKind, ReleaseOffer, ReleaseWithdrawal
from privacy.peer_heads import PEER_HEAD_CODES, Checkpoint
from privacy.signing import seal

_EXPECTED: dict[AnswerKind, ParcelKind] = {"release": "activated", "withdraw": "withdrawn"}
HEAD_RETRY_S = 60.0

_log = logging.getLogger(__name__)


class ReleaseDelivery:
    """Keeps every site's next release question in flight over `link`."""

    def __init__(self, tools: Tools, link: FleetLink) -> None:
        self._tools = tools
        self._dispatch = Dispatch(link, tools.clock)
        self._not_before_s: dict[str, float] = {}  # by site

    def step(self) -> None:
        """Take what has arrived and ask what is due.

        Raises LedgerError when the ledger no longer verifies (I4).
        """
        due = self._due()
        for reply in self._dispatch.replies():
            if (asked := due.get(reply.site)) is not None and _key(asked) == reply.key:
                self._take(reply, *asked)
        self._dispatch.ask(
            {
                site: Question(_key(asked), functools.partial(self._parcel, site, *asked))
                for site, asked in self._due().items()
            }
        )
        self._tools.journal.flush()

    def _due(self) -> dict[str, tuple[StoredRelease, AnswerKind]]:
        """What each active site should be told next: withdrawals first, oldest first."""
        tools = self._tools
        stored = tools.releases.all()
        withdrawn = [one for one in stored if one.state == "withdrawn" and one.was_published]
        current = None if tools.jobs.unfinished() else current_of(stored)
        due: dict[str, tuple[StoredRelease, AnswerKind]] = {}
        for name, site in tools.registry.active().items():
            key_id = site.ledger_key_id
            untold = [one for one in withdrawn if (key_id, "withdraw") not in one.answers]
            if self._not_before_s.get(name, 0.0) > tools.clock():
                continue
            if untold:
                due[name] = untold[0], "withdraw"
            elif current is not None and _lacks(current, name, key_id):
                due[name] = current, "release"
        return due

    def _take(self, reply: Reply, stored: StoredRelease, kind: AnswerKind) -> None:
        tools = self._tools
        site = tools.registry.active().get(reply.site)
        if site is None:
            return
        code = answer_code(
            reply.parcel,
            site,
            expected=_EXPECTED[kind],
            job=stored.job,
            subject_sha256=manifest_sha256(stored.statement, tools.identity.public),
        )
        tools.journal.heads(site).acknowledge(held_size(reply.parcel, site))
        _log.info("release %s, %s: site %s answered %s", stored.release, kind, site.name, code)
        if code in PEER_HEAD_CODES:  # not about the release: a later head may be proved again
            self._not_before_s[site.name] = tools.clock() + HEAD_RETRY_S
            return
        answer = SiteAnswer(site.name, site.ledger_key_id, kind, code, tools.clock())
        tools.releases.answered(stored.release, answer)

    def _parcel(self, name: str, stored: StoredRelease, kind: AnswerKind) -> Parcel:
        tools = self._tools
        if kind == "withdraw":
            digest = manifest_sha256(stored.statement, tools.identity.public)
            return Parcel("withdraw", seal(_withdrawal(stored, digest), tools.identity))
        site = tools.registry.active().get(name)
        if site is None:
            raise SiteGoneError(name)
        head = tools.journal.heads(site).show()
        adapter = tools.releases.adapter(stored.release)
        return Parcel("offer", seal(_offer(stored, head), tools.identity), adapter)


def _lacks(current: StoredRelease, name: str, key_id: str) -> bool:
    return name not in current.unwilling and (key_id, "release") not in current.answers


def _key(asked: tuple[StoredRelease, AnswerKind]) -> tuple[str, int]:
    stored, kind = asked
    return kind, stored.events[-1].sequence


def _offer(stored: StoredRelease, head: Checkpoint) -> ReleaseOffer:
    return ReleaseOffer(
        job=stored.job,
        release=stored.release,
        manifest=stored.statement.decode("ascii"),
        tree_head=head.root,
        tree_size=head.size,
        peer_size=head.peer_size,
        proofs=head.proofs,
    )


def _withdrawal(stored: StoredRelease, manifest_sha256: str) -> ReleaseWithdrawal:
    event = stored.events[-1]
    at = datetime.fromtimestamp(event.at_s, UTC).isoformat(timespec="seconds")
    return ReleaseWithdrawal(stored.job, stored.release, manifest_sha256, event.code, at)
