"""What a site's subjects have spent, for the eyes of the site alone: nothing of it leaves."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

from client_node.home import SiteHome, SiteSettings
from client_node.keys import load_keys
from client_node.policy import SitePolicy
from client_node.store import PlanBook, SiteStore
from privacy.budget import Budget, BudgetState, SpendLine
from privacy.ledger import Ledger
from privacy.plan import RoundPlan
from privacy.store import open_engine

ACCEPTED = "plan.accepted"


@dataclasses.dataclass(frozen=True)
class SubjectSpend:
    """One person's ε over all purposes.

    `epsilon_next` is after one more round of the latest accepted plan, None where there is none,
    and equals `epsilon` for who will not be sampled: consent withdrawn, or the cap reached.
    """

    subject: str
    consent: bool
    epsilon: float
    epsilon_next: float | None


@dataclasses.dataclass(frozen=True)
class SiteSpend:
    """Budget of a site; `purposes` are since it began, `overall` all purposes ever and this year.

    `subject_cap` is the policy's cap on one person, `next_job` the job that `epsilon_next` of each
    of `subjects` is about.
    """

    site: str
    delta: float
    purposes: tuple[BudgetState, ...]
    overall: tuple[SpendLine, ...]
    subject_cap: float
    next_job: str | None
    subjects: tuple[SubjectSpend, ...]


def collect_spend(home: SiteHome, *, subjects: bool) -> SiteSpend:
    """Read a site's budget, verifying its whole ledger; `subjects` adds a line for each person.

    Raises LedgerError where the ledger does not verify.
    """
    settings, policy = SiteSettings.load(home.settings), SitePolicy.load(home.policy)
    engine = open_engine(home.database_url)
    try:
        ledger = Ledger(engine, load_keys(home).identity, f"site/{settings.site}", _now)
        budget = Budget(engine, settings.site, policy.caps, ledger.append, _now)
        plan = _latest_plan(ledger, PlanBook(engine))
        people = _subject_lines(budget, SiteStore(engine), plan) if subjects else ()
        return SiteSpend(
            site=settings.site,
            delta=policy.delta,
            purposes=tuple(budget.spent(purpose) for purpose in budget.purposes()),
            overall=budget.overall(),
            subject_cap=policy.subject_epsilon,
            next_job=plan.job if plan else None,
            subjects=people,
        )
    finally:
        engine.dispose()


def _latest_plan(ledger: Ledger, plans: PlanBook) -> RoundPlan | None:
    jobs = [str(entry.fields["job"]) for entry in ledger.entries() if entry.kind == ACCEPTED]
    known = plans.find(jobs[-1]) if jobs else None
    return RoundPlan.from_json(known[0]) if known else None


def _subject_lines(
    budget: Budget, store: SiteStore, plan: RoundPlan | None
) -> tuple[SubjectSpend, ...]:
    lines = []
    # Who arrived between the same two rounds has spent the same: one composition for all of them.
    spent: dict[int, tuple[float, float | None]] = {}
    for person in store.subjects():
        joined = person.joined_after
        if joined not in spent:
            now = budget.subject_epsilon(joined)
            spent[joined] = (now, budget.subject_epsilon(joined, plan) if plan else None)
        now, after = spent[joined]
        if after is not None and (not person.consent or after > budget.caps.subject):
            after = now
        lines.append(SubjectSpend(person.name, person.consent, now, after))
    return tuple(lines)


def _now() -> datetime:
    return datetime.now(UTC)
