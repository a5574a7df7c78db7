"""A round of secure aggregation at the coordinator: what to ask each site next, and the sum.

    keys ─▶ shares ─▶ update ─▶ sum (confirm, then unmask as soon as a threshold has confirmed)

The first three stages wait for every site that did the one before, each until a deadline of its
own; a site that misses one is out of the round. The last needs a threshold of survivors only: their
updates are in already, so that whoever falls silent now delays nothing. State is in the database,
as the job loop's is; what is kept here can be read from there again.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable

import numpy as np

from coordinator.admission import HOSTILE_CODES, norm_bound
from coordinator.aggregate import Gradient
from coordinator.answers import answer_code
from coordinator.dispatch import Question, Reply
from coordinator.job_records import JobRecord
from coordinator.jobs import Jobs
from coordinator.registry import SiteRecord
from coordinator.rounds import OK, RoundState
from coordinator.secure_records import (
    CONFIRM,
    KEYS,
    SHARES,
    UNMASK,
    SecureRecord,
    SecureRecords,
    Stage,
)
from privacy.parcel import Parcel, ParcelKind, RoundOrder
from privacy.secure_aggregation.coordinator import Gathered, add_masked, remove_masks
from privacy.secure_aggregation.errors import SecureAggregationError
from privacy.secure_aggregation.messages import KeysOrder, SiteShares, SurvivorList
from privacy.secure_aggregation.roster import open_keys
from privacy.secure_aggregation.setting import Setting
from privacy.signing import Identity, seal

UPDATE = "secure-round"
EXPECTED: dict[str, ParcelKind] = {
    KEYS: "keys",
    SHARES: "shares",
    CONFIRM: "confirmed",
    UNMASK: "unmasked",
}
MISSED = "secure-missed"
IMPLAUSIBLE = "sum-implausible"
TOO_FEW = "sum-too-few"
_NEXT: dict[Stage, tuple[str, Stage]] = {"keys": (KEYS, "shares"), "shares": (SHARES, "update")}


@dataclasses.dataclass(frozen=True)
class _Among:
    """What closed stages settled: the roster, and once it is whole, the shares."""

    number: int
    gathered: Gathered
    shares: dict[str, SiteShares]


class SecureRound:
    """The latest round of one job, under secure aggregation."""

    def __init__(
        self,
        job: str,
        jobs: Jobs,
        records: SecureRecords,
        identity: Identity,
        order: Callable[[JobRecord, SiteRecord], RoundOrder],
    ) -> None:
        """`order` gives the round's order as one site is to get it."""
        self._job = job
        self._jobs = jobs
        self._records = records
        self._identity = identity
        self._order = order
        self._known: _Among | None = None

    def questions(
        self, record: JobRecord, state: RoundState, sites: Iterable[SiteRecord]
    ) -> dict[str, Question]:
        """What those of `sites` that something is asked of should be asked now."""
        secure = self._records.load(self._job, state.number)
        steps = [(site, self._step(secure, state, site.name)) for site in sites]
        parcel = functools.partial(self._parcel, record)
        return {
            site.name: Question((step, state.number), functools.partial(parcel, step, site))
            for site, step in steps
            if step is not None
        }

    def take(self, reply: Reply, record: JobRecord, site: SiteRecord, now_s: float) -> None:
        """Keep a site's answer to a step, or what it refused it with."""
        step, number = reply.key
        code = self._code(reply, record, site)
        if code == OK or step in (CONFIRM, UNMASK):
            statement = reply.parcel.statement if code == OK else b""
            self._records.answer(self._job, number, step, site.name, code=code, statement=statement)
        else:
            hostile = code in HOSTILE_CODES
            self._jobs.refuse(self._job, number, site.name, code, now_s=now_s, hostile=hostile)

    def advance(self, record: JobRecord, state: RoundState, now_s: float) -> bool:
        """Go on from keys or shares where that is due; False once updates are collected."""
        secure = self._records.load(self._job, state.number)
        if secure.stage == "update":
            if out := sorted(set(state.missing) - secure.did(SHARES)):
                self._jobs.refuse(self._job, state.number, out[0], MISSED, now_s=now_s)
            return bool(out)
        step, after = _NEXT[secure.stage]
        silent = sorted(set(state.missing) - secure.answered(step))
        if not silent:
            deadline_at_s = now_s + record.plan.deadline_s
            self._records.begin(self._job, state.number, after, deadline_at_s)
        elif now_s >= state.deadline_at_s:
            self._jobs.refuse(self._job, state.number, silent[0], MISSED, now_s=now_s)
        return True

    def gradient(self, record: JobRecord, state: RoundState, now_s: float) -> Gradient | None:
        """The mean gradient once a threshold has unmasked the sum; None while it has not.

        Abandons the round where that cannot be any more, or the sum is beyond what the plan's
        mechanism can give.
        """
        number, plan = state.number, record.plan
        secure = self._records.load(self._job, number)
        if secure.stage != "sum":
            self._records.begin(self._job, number, "sum", now_s + plan.deadline_s)
            return None
        if len(secure.did(UNMASK)) >= plan.quorum:
            sum_D = self._sum(record, state)
            if sum_D is not None and _plausible(sum_D, record, len(state.admitted)):
                return sum_D / plan.divisor
            if sum_D is not None:
                self._jobs.lose_sum(self._job, number, IMPLAUSIBLE, now_s=now_s)
                return None
        left = state.admitted - secure.lost
        waiting = left - secure.did(UNMASK)
        if len(left) < plan.quorum or not waiting or now_s >= state.deadline_at_s:
            self._jobs.lose_sum(self._job, number, TOO_FEW, now_s=now_s)
        return None

    def facts(self, record: JobRecord, number: int) -> dict[str, str]:
        """What the ledger records of the round beside its mechanism."""
        return {"roster_sha256": self._among(record, number).gathered.sha256}

    @staticmethod
    def _step(secure: SecureRecord, state: RoundState, site: str) -> str | None:
        missing = site in state.missing
        if secure.stage == "keys":
            return KEYS if missing and site not in secure.answered(KEYS) else None
        if secure.stage == "shares":
            due = missing and site in secure.did(KEYS)
            return SHARES if due and site not in secure.answered(SHARES) else None
        if secure.stage == "update":
            return UPDATE if missing and site in secure.did(SHARES) else None
        if site not in state.admitted or site in secure.lost | secure.answered(UNMASK):
            return None
        if site not in secure.answered(CONFIRM):
            return CONFIRM
        return UNMASK if len(secure.did(CONFIRM)) >= state.quorum else None

    def _parcel(self, record: JobRecord, step: str, site: SiteRecord) -> Parcel:
        assert record.round is not None  # or there were no step
        number, named = record.round.number, record.plan
        if step == KEYS:
            order = KeysOrder(self._job, number, named.sha256)
            return Parcel("secure-keys", seal(order, self._identity))
        among = self._among(record, number)
        gathered = among.gathered
        if step == SHARES:
            return Parcel("secure-shares", seal(gathered.roster(), self._identity))
        if step == UPDATE:
            order_to = self._order(record, site)
            mask = gathered.mask_order(order_to, self._shares(record), site.name)
            weights = self._jobs.checkpoint(self._job).weights
            return Parcel("secure-round", seal(mask, self._identity), weights)
        if step == CONFIRM:
            listed = self._survivors(record)
            return Parcel("secure-confirm", seal(listed, self._identity))
        proof = gathered.unmask_order(self._signed(number, CONFIRM))
        return Parcel("secure-unmask", seal(proof, self._identity))

    def _code(self, reply: Reply, record: JobRecord, site: SiteRecord) -> str:
        (step, number), parcel = reply.key, reply.parcel
        expected = EXPECTED[step]
        if parcel.kind == "refused":
            return answer_code(parcel, site, expected=expected, job=self._job, subject_sha256="")
        if parcel.kind != expected:
            return "kind-unexpected"
        planned = Setting.of(record.plan, number).identities[site.name]
        if planned.key_id != site.identity.key_id:
            return "key-retired"  # the plan is of before its rotation
        try:
            self._verify(step, parcel.statement, record, number, site.name)
        except SecureAggregationError as error:
            return error.code
        return OK

    def _verify(
        self, step: str, statement: bytes, record: JobRecord, number: int, site: str
    ) -> None:
        if step == KEYS:
            open_keys(statement, Setting.of(record.plan, number), site)
            return
        gathered = self._among(record, number).gathered
        if step == SHARES:
            gathered.shares(statement, site)
            return
        listed = self._survivors(record)
        check: Callable[[bytes, str, SurvivorList], object] = (
            gathered.confirmation if step == CONFIRM else gathered.unmasking
        )
        check(statement, site, listed)

    def _among(self, record: JobRecord, number: int) -> _Among:
        if self._known is None or self._known.number != number:
            setting = Setting.of(record.plan, number)
            gathered = Gathered.of(setting, self._signed(number, KEYS))
            self._known = _Among(number, gathered, {})
        return self._known

    def _shares(self, record: JobRecord) -> dict[str, SiteShares]:
        assert record.round is not None
        among = self._among(record, record.round.number)
        if not among.shares:
            for site, statement in self._signed(among.number, SHARES).items():
                among.shares[site] = among.gathered.shares(statement, site)
        return among.shares

    def _survivors(self, record: JobRecord) -> SurvivorList:
        assert record.round is not None
        number = record.round.number
        sharers = self._records.load(self._job, number).did(SHARES)
        return self._among(record, number).gathered.survivor_list(sharers, record.round.admitted)

    def _signed(self, number: int, step: str) -> dict[str, bytes]:
        return self._records.signed(self._job, number, step)

    def _sum(self, record: JobRecord, state: RoundState) -> Gradient | None:
        """The sum of the survivors' updates; None where a share that came is wrong."""
        gathered = self._among(record, state.number).gathered
        listed = self._survivors(record)
        unmaskings = {
            site: gathered.unmasking(statement, site, listed)
            for site, statement in self._signed(state.number, UNMASK).items()
        }
        masked_D = add_masked(self._jobs.payloads(self._job, state.number), gathered.setting)
        try:
            return remove_masks(masked_D, gathered, listed, unmaskings)
        except SecureAggregationError:
            return None


def _plausible(sum_D: Gradient, record: JobRecord, survivors: int) -> bool:
    return float(np.linalg.norm(sum_D)) <= survivors * norm_bound(record.plan)
