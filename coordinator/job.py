"""The job loop: order, poll, admit, aggregate, checkpoint, next; resumable after kill -9 anywhere.

Each step reads the job from the database, asks the sites whatever that state calls for, and takes
at most one transition per answer. The loop keeps nothing of its own, so a killed coordinator goes
on by running it again: questions are repeated, sites repeat their answers byte for byte, and an
answer that was already taken is no longer asked for.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

from coordinator.admission import HOSTILE_CODES, Admission, admit
from coordinator.aggregate import pack, unpack
from coordinator.answers import answer_code, held_size
from coordinator.dispatch import Dispatch, Question, Reply
from coordinator.errors import AdmissionError
from coordinator.job_records import FINISHED, JobRecord
from coordinator.jobs import Jobs
from coordinator.journal import Journal
from coordinator.link import FleetLink
from coordinator.model_artifacts import ArtifactSource
from coordinator.optimiser import OptimiserState, apply
from coordinator.planning import mechanism_fields
from coordinator.registry import Registry, SiteRecord
from coordinator.release import NO_LABELS, Evaluate, Labels, manifest_sha256
from coordinator.release_desk import ReleaseDesk
from coordinator.release_records import ReleaseRecords, SiteAnswer
from coordinator.robust import combined
from coordinator.rounds import OK, ClockRead, RoundState, advance, weigh_codes
from coordinator.secure_records import SecureRecords
from coordinator.secure_round import UPDATE, SecureRound
from privacy.errors import LedgerError
from privacy.parcel import Parcel, ReleaseManifest, RoundOrder, UpdateHeader
from privacy.peer_heads import PEER_HEAD_CODES, Checkpoint, PeerHeads
from privacy.signing import Identity, open_as, seal

POLL_S = 0.05
SITE_INACTIVE = "site-inactive"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tools:
    """What the loop works with; all of it is passed in.

    `evaluate` measures each release on the operator's public test set before it is signed; `labels`
    are what the operator says of them.
    """

    jobs: Jobs
    secure: SecureRecords
    registry: Registry
    journal: Journal
    identity: Identity
    artifacts: ArtifactSource
    releases: ReleaseRecords
    releases_folder: Path
    clock: Callable[[], float]
    evaluate: Evaluate | None = None
    labels: Labels = NO_LABELS


class JobLoop:
    """Runs one job to its end."""

    def __init__(self, job: str, tools: Tools, link: FleetLink) -> None:
        self._job = job
        self._tools = tools
        self._desk = ReleaseDesk(tools)
        self._dispatch = Dispatch(link, tools.clock)
        self._secure = SecureRound(job, tools.jobs, tools.secure, tools.identity, self._order)

    def run(self, wait: Callable[[float], bool]) -> None:
        """Run until the job is finished or `wait(seconds)` returns True.

        Raises LedgerError when the ledger no longer verifies: the service must stop (I4).
        """
        self._tools.jobs.renew_deadline(self._job, self._tools.clock())
        while not self.step():
            if wait(POLL_S):
                return

    def step(self) -> bool:
        """Take what has arrived, do what follows from it, ask what comes next.

        True once the job is finished.
        """
        tools = self._tools
        for reply in self._dispatch.replies():
            self._take(reply)
        record = tools.jobs.load(self._job)
        while (after := self._advance(record)) != record:
            record = after
        if record.state not in FINISHED:
            self._ask(record)
        tools.journal.flush()
        return record.state in FINISHED

    def _ask(self, record: JobRecord) -> None:
        questions = self._questions(record)
        asked = self._dispatch.ask(questions)
        ordered = any(questions[site].key[0] in ("round", UPDATE) for site in asked)
        if ordered and record.round is not None and record.round.status == "open":
            self._tools.jobs.orders_sent(self._job, record.round.number)

    def _questions(self, record: JobRecord) -> dict[str, Question]:
        """What each site should be asked now."""
        if record.state in FINISHED:
            return {}  # one answer may abandon the job before the next is taken
        active = self._tools.registry.active()
        questions: dict[str, Question] = {}
        in_round: list[SiteRecord] = []
        for site, participant in record.participants.items():
            if site not in active or participant.plan_code not in (None, OK):
                continue
            to = active[site]
            if record.state == "releasing":
                unasked = participant.plan_code == OK and participant.release_code is None
                if unasked and not record.request.hold:
                    parcel = functools.partial(self._release_parcel, to)
                    questions[site] = Question(("release", 0), parcel)
            elif participant.plan_code is None:
                questions[site] = Question(("prepare", 0), lambda: self._plan_parcel(record))
            elif record.round is not None and _is_secure(record):
                in_round.append(to)
            elif record.round is not None and site in record.round.missing:
                key = ("round", record.round.number)
                parcel = functools.partial(self._order_parcel, record, to)
                questions[site] = Question(key, parcel)
        if in_round and record.round is not None:
            questions |= self._secure.questions(record, record.round, in_round)
        return questions

    def _plan_parcel(self, record: JobRecord) -> Parcel:
        basis = self._tools.jobs.checkpoint(self._job).basis
        return Parcel("prepare", record.plan_statement, basis)

    def _order_parcel(self, record: JobRecord, site: SiteRecord) -> Parcel:
        weights = self._tools.jobs.checkpoint(self._job).weights
        return Parcel("round", seal(self._order(record, site), self._tools.identity), weights)

    def _order(self, record: JobRecord, site: SiteRecord) -> RoundOrder:
        """The round's order with our ledger's head, proved to extend those that the site holds."""
        trusted = (self._tools.identity.public,)
        order = open_as(RoundOrder, record.order_statement, trusted)
        head = self._heads(site).show()
        return dataclasses.replace(
            order,
            tree_head=head.root,
            tree_size=head.size,
            peer_size=head.peer_size,
            proofs=head.proofs,
        )

    def _heads(self, site: SiteRecord) -> PeerHeads:
        return self._tools.journal.heads(site)

    def _release_parcel(self, site: SiteRecord) -> Parcel:
        _, statement, adapter = self._tools.jobs.release(self._job)
        manifest = open_as(ReleaseManifest, statement, (self._tools.identity.public,))
        self._heads(site).remember_shown(manifest.tree_size)
        return Parcel("release", statement, adapter)

    def _take(self, reply: Reply) -> None:
        """Make one transition of a site's answer, unless it is no longer asked."""
        record = self._tools.jobs.load(self._job)
        site = self._tools.registry.active().get(reply.site)
        question = self._questions(record).get(reply.site)
        if site is None or question is None or question.key != reply.key:
            return  # revoked or quarantined meanwhile, or too late for its round
        match reply.key[0]:
            case "round" | "secure-round":
                self._take_update(reply.parcel, record, site, number=reply.key[1])
            case "prepare":
                code = answer_code(
                    reply.parcel,
                    site,
                    expected="accepted",
                    job=self._job,
                    subject_sha256=record.plan.sha256,
                )
                self._tools.jobs.answer_plan(self._job, site.name, code)
            case "release":
                self._take_release(reply.parcel, site)
            case _:
                self._secure.take(reply, record, site, self._tools.clock())

    def _take_update(
        self, parcel: Parcel, record: JobRecord, site: SiteRecord, *, number: int
    ) -> None:
        jobs, now_s = self._tools.jobs, self._tools.clock()
        if parcel.kind == "refused":
            code = answer_code(parcel, site, expected="update", job=self._job, subject_sha256="")
            self._heads(site).acknowledge(held_size(parcel, site))
            jobs.refuse(self._job, number, site.name, code, now_s=now_s)
            return
        admission = Admission(
            plan=record.plan,
            round=number,
            site=site.name,
            identity=site.identity,
            seen=lambda digest: jobs.payload_seen(self._job, digest),
            retired=self._tools.registry.retired(site.name),
        )
        try:
            header = admit(parcel, admission)
            self._take_head(header, site)
        except AdmissionError as error:
            _log.warning("update of site %s refused: %s", site.name, error.code)
            hostile = error.code in HOSTILE_CODES
            jobs.refuse(self._job, number, site.name, error.code, now_s=now_s, hostile=hostile)
        else:
            jobs.admit(self._job, number, site.name, header, parcel.payload, now_s=now_s)

    def _take_head(self, header: UpdateHeader, site: SiteRecord) -> None:
        """Hold the site to the ledger that it has shown. Raises AdmissionError."""
        head = Checkpoint(header.tree_size, header.tree_head, header.peer_size, header.proofs)
        try:
            self._heads(site).take(head)
        except LedgerError as error:
            if error.code not in PEER_HEAD_CODES:
                raise
            raise AdmissionError(error.problem, remedy=error.remedy, code=error.code) from error

    def _take_release(self, parcel: Parcel, site: SiteRecord) -> None:
        tools, job = self._tools, self._job
        name, statement, _ = tools.jobs.release(job)
        signed = manifest_sha256(statement, tools.identity.public)
        code = answer_code(parcel, site, expected="activated", job=job, subject_sha256=signed)
        answer = SiteAnswer(site.name, site.ledger_key_id, "release", code, tools.clock())
        tools.jobs.answer_release(job, name, answer)

    def _advance(self, record: JobRecord) -> JobRecord:
        """Take the transition that is due, if one is; returns the job after it."""
        now_s = self._tools.clock()
        if record.state == "preparing":
            codes = [participant.plan_code for participant in record.participants.values()]
            late = now_s >= record.deadline_at_s
            if weigh_codes(codes, record.plan.quorum, late) != "wait":
                self._tools.jobs.start_if_ready(self._job, now_s)
        elif record.state == "running":
            self._advance_round(record, record.round, now_s)
        elif record.state == "releasing":
            waiting = self._questions(record)
            if not waiting or now_s >= record.deadline_at_s:
                self._desk.write_files(self._tools.jobs.release(self._job)[0])
                self._tools.jobs.finish(self._job, now_s)
        return self._tools.jobs.load(self._job)

    def _advance_round(self, record: JobRecord, state: RoundState | None, now_s: float) -> None:
        if state is None or state.status == "released":
            if record.rounds_done < record.plan.rounds:
                self._open_round(record, now_s)
            else:
                self._sign_release(record, now_s)
        elif state.status == "aggregating":
            self._aggregate(record, state, now_s)
        elif lost := self._lost_site(record, state):
            self._tools.jobs.refuse(self._job, state.number, *lost, now_s=now_s)
        elif _is_secure(record) and self._secure.advance(record, state, now_s):
            pass
        elif advance(state, ClockRead(now_s)) != state:
            self._tools.jobs.read_clock(self._job, state.number, now_s)

    def _lost_site(self, record: JobRecord, state: RoundState) -> tuple[str, str] | None:
        """A site that the round need not wait for any more, and why."""
        active = self._tools.registry.active()
        for site in state.missing:
            refused = record.participants[site].plan_code
            if site not in active or refused not in (None, OK):
                return site, SITE_INACTIVE if refused in (None, OK) else refused
        return None

    def _open_round(self, record: JobRecord, now_s: float) -> None:
        """Seal the order once, so that every copy of it is the same, and open the round."""
        tools, number = self._tools, record.rounds_done + 1
        tools.journal.flush()
        head = tools.journal.ledger.tree_head()
        weights = tools.jobs.checkpoint(self._job).weights
        order = RoundOrder(
            job=self._job,
            round=number,
            plan_sha256=record.plan.sha256,
            payload_sha256=hashlib.sha256(weights).hexdigest(),
            tree_head=head.root,
            tree_size=head.size,
        )
        active = tools.registry.active()
        willing = {s for s, p in record.participants.items() if p.plan_code in (None, OK)}
        sites = frozenset(willing & active.keys())
        statement = seal(order, tools.identity)
        tools.jobs.open_round(self._job, number, sites, statement, now_s=now_s)

    def _aggregate(self, record: JobRecord, state: RoundState, now_s: float) -> None:
        """Step the weights by the round's updates and checkpoint them."""
        jobs, plan, number = self._tools.jobs, record.plan, state.number
        facts = mechanism_fields(plan)
        if _is_secure(record):
            secure_D = self._secure.gradient(record, state, now_s)
            if secure_D is None:
                return
            gradient_D = secure_D
            facts |= self._secure.facts(record, number)
        else:
            home = self._tools.releases_folder.parent
            gradient_D = combined(plan, jobs.payloads(self._job, number), home)
        checkpoint = jobs.checkpoint(self._job)
        weights_D, optimiser = apply(
            plan.optimiser,
            unpack(checkpoint.weights),
            gradient_D,
            OptimiserState.from_bytes(checkpoint.optimiser),
            plan.rounds,
            layer_sizes=[tensor.size for tensor in plan.adapter.tensors],
        )
        weights = pack(weights_D)
        facts["weights_sha256"] = hashlib.sha256(weights).hexdigest()
        jobs.finish_round(
            self._job, number, weights, optimiser.to_bytes(), facts=facts, now_s=now_s
        )
        _log.info("job %s: round %d of %d is done", self._job, number, plan.rounds)

    def _sign_release(self, record: JobRecord, now_s: float) -> None:
        tools = self._tools
        tools.journal.flush()
        checkpoint = tools.jobs.checkpoint(self._job)
        adapter = tools.artifacts.export(
            record.request.base_folder,
            record.plan.adapter,
            checkpoint.basis,
            unpack(checkpoint.weights),
        )
        base_folder = record.request.base_folder
        evaluation = tools.evaluate(base_folder, adapter) if tools.evaluate else None
        manifest, statement = self._desk.sign(record.plan, adapter, evaluation, now_s)
        tools.jobs.begin_release(self._job, manifest.release, statement, adapter, now_s=now_s)


def _is_secure(record: JobRecord) -> bool:
    return record.plan.privacy_mode == "secure-aggregation"
