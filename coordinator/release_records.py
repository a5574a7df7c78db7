"""Releases as they stand in the database: held, published or withdrawn, and who serves which.

A release is held until it is published, and published until it is withdrawn, which is final. The
current release is the one that was published last and not withdrawn. A release's manifest may be
signed anew while it is held, and never after.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from typing import Literal, cast

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from coordinator.errors import CoordinatorError
from coordinator.journal import note
from coordinator.rounds import OK
from coordinator.store import (
    ParticipantRow,
    ReleaseAnswerRow,
    ReleaseEventRow,
    ReleaseRow,
)
from privacy.store import reading, writing

ReleaseState = Literal["held", "published", "withdrawn"]
AnswerKind = Literal["release", "withdraw"]


@dataclasses.dataclass(frozen=True)
class ReleaseEvent:
    """A step in a release's life. `code` is why it was withdrawn, otherwise empty.

    `sequence` orders the events of all releases.
    """

    sequence: int
    state: ReleaseState
    at_s: float
    code: str


@dataclasses.dataclass(frozen=True)
class SiteAnswer:
    """What a site, known by its key, said to a release or its withdrawal: "ok" or a refusal's code.

    `at_s` is in seconds since the epoch.
    """

    site: str
    key_id: str
    kind: AnswerKind
    code: str
    at_s: float


@dataclasses.dataclass(frozen=True)
class StoredRelease:
    """A release without its adapter.

    Attributes:
        events: its life, oldest first; never empty.
        answers: of the sites, by key; a site that was enrolled again counts anew.
        unwilling: sites that had refused the plan of its job: nobody offers it to them.
    """

    release: str
    job: str
    statement: bytes
    events: tuple[ReleaseEvent, ...]
    answers: dict[tuple[str, AnswerKind], SiteAnswer]
    unwilling: frozenset[str]

    @property
    def state(self) -> ReleaseState:
        """Where it stands now."""
        return self.events[-1].state

    @property
    def was_published(self) -> bool:
        """Whether any site may ever have had it."""
        return any(event.state == "published" for event in self.events)


class ReleaseRecords:
    """Reads releases and moves them on; each method is one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def all(self) -> list[StoredRelease]:
        """Every release, oldest first."""
        with reading(self._engine) as session:
            return _stored(session)

    def load(self, release: str) -> StoredRelease:
        """One release. Raises CoordinatorError ("release-unknown")."""
        with reading(self._engine) as session:
            return _one(session, release)

    def adapter(self, release: str) -> bytes:
        """The adapter's bytes. Raises CoordinatorError ("release-unknown")."""
        with reading(self._engine) as session:
            return _row(session, release).adapter

    def current(self) -> StoredRelease | None:
        """The release that sites should serve; None before the first is published."""
        return current_of(self.all())

    def publish(self, release: str, statement: bytes, now_s: float) -> None:
        """Publish a held release under the manifest `statement`. Raises CoordinatorError."""
        with writing(self._engine) as session:
            require_held(_one(session, release))
            _row(session, release).statement = statement
            enter(session, release, "published", now_s)

    def withdraw(self, release: str, code: str, now_s: float) -> None:
        """Withdraw a release for the reason `code`. Raises CoordinatorError."""
        with writing(self._engine) as session:
            if _one(session, release).state == "withdrawn":
                raise CoordinatorError(
                    f"release {release} is withdrawn already",
                    remedy="nothing to do: sites learn of it when they are online",
                    code="release-withdrawn",
                )
            enter(session, release, "withdrawn", now_s, code)

    def answered(self, release: str, answer: SiteAnswer) -> None:
        """Keep what a site answered outside of a job."""
        with writing(self._engine) as session:
            keep_answer(session, release, answer)
            event = "release.answered" if answer.kind == "release" else "withdrawal.answered"
            note(session, event, {"release": release, "site": answer.site, "code": answer.code})


def current_of(releases: list[StoredRelease]) -> StoredRelease | None:
    """The release of `releases` that was published last and is not withdrawn."""
    published = [one for one in releases if one.state == "published"]
    return max(published, key=lambda one: one.events[-1].sequence, default=None)


def require_held(stored: StoredRelease) -> None:
    """Raises CoordinatorError unless the release waits to be published."""
    if stored.state != "held":
        raise CoordinatorError(
            f"release {stored.release} is {stored.state}",
            remedy="only a held release can be published; to go back to an earlier release, "
            "withdraw those after it",
            code=f"release-{stored.state}",
        )


def enter(
    session: Session, release: str, state: ReleaseState, now_s: float, code: str = ""
) -> None:
    """Record, within the caller's transaction, that `release` is now in `state`."""
    session.add(ReleaseEventRow(release=release, state=state, code=code, at=now_s))
    note(session, f"release.{state}", {"release": release} | ({"code": code} if code else {}))


def keep_answer(session: Session, release: str, answer: SiteAnswer) -> None:
    """Keep a site's answer within the caller's transaction; a repeated one replaces the first."""
    row = ReleaseAnswerRow(
        release=release,
        key_id=answer.key_id,
        kind=answer.kind,
        site=answer.site,
        code=answer.code,
        at=answer.at_s,
    )
    session.merge(row)


def _row(session: Session, release: str) -> ReleaseRow:
    row = session.get(ReleaseRow, release)
    if row is None:
        raise CoordinatorError(
            f"there is no release {release}",
            remedy="list them with `auricle release list`",
            code="release-unknown",
        )
    return row


def _one(session: Session, release: str) -> StoredRelease:
    _row(session, release)
    return next(one for one in _stored(session) if one.release == release)


def _stored(session: Session) -> list[StoredRelease]:
    """All releases by a few queries, however many there are."""
    rows = session.scalars(select(ReleaseRow).order_by(ReleaseRow.created_at)).all()
    jobs = [row.job for row in rows]
    events: dict[str, list[ReleaseEvent]] = defaultdict(list)
    for event in session.scalars(select(ReleaseEventRow).order_by(ReleaseEventRow.sequence)):
        state = cast("ReleaseState", event.state)
        step = ReleaseEvent(event.sequence, state, event.at, event.code)
        events[event.release].append(step)
    answers: dict[str, dict[tuple[str, AnswerKind], SiteAnswer]] = defaultdict(dict)
    for row in session.scalars(select(ReleaseAnswerRow)):
        answer = _answer(row)
        answers[row.release][answer.key_id, answer.kind] = answer
    unwilling: dict[str, set[str]] = defaultdict(set)
    for person in session.scalars(select(ParticipantRow).where(ParticipantRow.job.in_(jobs))):
        if person.plan_code not in (None, OK):
            unwilling[person.job].add(person.site)
    return [
        StoredRelease(
            release=row.release,
            job=row.job,
            statement=row.statement,
            events=tuple(events[row.release]),
            answers=answers[row.release],
            unwilling=frozenset(unwilling[row.job]),
        )
        for row in rows
    ]


def _answer(row: ReleaseAnswerRow) -> SiteAnswer:
    return SiteAnswer(row.site, row.key_id, cast("AnswerKind", row.kind), row.code, row.at)
