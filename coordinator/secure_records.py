"""Rounds of secure aggregation as they stand in the database: stage, and who answered which step.

A stage closes for good: answers are taken for the stage of the moment only, so that the sets of
sites that the protocol signs (the roster, who has shares, who survived) never change afterwards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Literal, cast

from sqlalchemy import Engine, delete, select
from sqlalchemy.orm import Session

from coordinator.journal import note
from coordinator.rounds import OK
from coordinator.store import RoundRow, SecureAnswerRow, SecureRoundRow
from privacy.store import reading, writing

Stage = Literal["keys", "shares", "update", "sum"]
KEYS, SHARES, CONFIRM, UNMASK = "secure-keys", "secure-shares", "secure-confirm", "secure-unmask"


@dataclasses.dataclass(frozen=True)
class SecureRecord:
    """A round's stage, and each site's answer to each step: "ok" or a refusal's code."""

    stage: Stage
    answers: Mapping[str, Mapping[str, str]]

    def did(self, step: str) -> frozenset[str]:
        """Sites that did `step`."""
        return frozenset(site for site, code in self.answers.get(step, {}).items() if code == OK)

    def answered(self, step: str) -> frozenset[str]:
        """Sites that did `step` or refused to."""
        return frozenset(self.answers.get(step, {}))

    @property
    def lost(self) -> frozenset[str]:
        """Sites that refused to confirm or to unmask."""
        steps = (self.answers.get(step, {}) for step in (CONFIRM, UNMASK))
        return frozenset(s for step in steps for s, code in step.items() if code != OK)


class SecureRecords:
    """Reads secure rounds and moves them on: one method, one transaction."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def load(self, job: str, number: int) -> SecureRecord:
        """The round as committed."""
        columns = (SecureAnswerRow.step, SecureAnswerRow.site, SecureAnswerRow.code)
        query = select(*columns).where(SecureAnswerRow.job == job, SecureAnswerRow.number == number)
        answers: dict[str, dict[str, str]] = {}
        with reading(self._engine) as session:
            row = session.get(SecureRoundRow, (job, number))
            for step, site, code in session.execute(query):
                answers.setdefault(step, {})[site] = code
        return SecureRecord(cast("Stage", row.stage) if row else "keys", answers)

    def signed(self, job: str, number: int, step: str) -> dict[str, bytes]:
        """What the sites that did `step` signed, in order of name."""
        query = (
            select(SecureAnswerRow.site, SecureAnswerRow.statement)
            .where(SecureAnswerRow.job == job, SecureAnswerRow.number == number)
            .where(SecureAnswerRow.step == step, SecureAnswerRow.code == OK)
            .order_by(SecureAnswerRow.site)
        )
        with reading(self._engine) as session:
            return {row.site: row.statement for row in session.execute(query)}

    def answer(
        self, job: str, number: int, step: str, site: str, *, code: str, statement: bytes
    ) -> None:
        """Keep what `site` signed in `step`, or the code with which it refused."""
        with writing(self._engine) as session:
            session.add(
                SecureAnswerRow(
                    job=job, number=number, step=step, site=site, code=code, statement=statement
                )
            )
            fields = {"job": job, "round": number, "step": step, "site": site, "code": code}
            note(session, "secure.answered", fields)

    def begin(self, job: str, number: int, stage: Stage, deadline_at_s: float) -> None:
        """Close the stage before, and wait for `stage` until `deadline_at_s`."""
        with writing(self._engine) as session:
            session.merge(SecureRoundRow(job=job, number=number, stage=stage))
            session.get_one(RoundRow, (job, number)).deadline_at = deadline_at_s


def sum_begun(session: Session, job: str, number: int) -> bool:
    """Whether the round's survivors may have been told to sites."""
    row = session.get(SecureRoundRow, (job, number))
    return row is not None and row.stage == "sum"


def clear_steps(session: Session, job: str, number: int) -> None:
    """Drop what sites signed in a round whose sum is in, but for their confirmations."""
    of_round = (SecureAnswerRow.job == job, SecureAnswerRow.number == number)
    session.execute(delete(SecureAnswerRow).where(*of_round, SecureAnswerRow.step != CONFIRM))


def forget_refusals(session: Session, job: str, number: int) -> None:
    """Forget refusals to confirm or unmask, so that those sites are asked once more."""
    of_round = (SecureAnswerRow.job == job, SecureAnswerRow.number == number)
    session.execute(delete(SecureAnswerRow).where(*of_round, SecureAnswerRow.code != OK))
