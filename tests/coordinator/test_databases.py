"""A job on each engine: the same bytes, the same ledger, and a site held to its head."""

from __future__ import annotations

import itertools

from sqlalchemy import select

from coordinator.job import JobLoop
from coordinator.status import job_status
from coordinator.store import SiteRow
from privacy.ledger_tables import ShownHeadRow
from privacy.merkle import MerkleTree
from privacy.parcel import HeadProof, RoundOrder, UpdateHeader
from privacy.signing import open_as
from privacy.store import reading
from tests.coordinator.fakes import FakeSite, Federation, StepLink, make_tools, request


def run_job(federation, **changes) -> str:
    job = federation.operations.submit(request(**changes))
    loop = JobLoop(job, federation.tools, StepLink(federation.sites))
    federation.tools.jobs.renew_deadline(job, federation.clock())
    while not loop.step():
        federation.clock.wait(0.05)
    return job


def test_a_job_runs_and_is_found_again_on_each_engine(tmp_path, url):
    federation = Federation(tmp_path, url=url)
    job = run_job(federation, rounds=2)
    federation.engine.dispose()
    tools, engine = make_tools(tmp_path, federation.identity, federation.clock, url)
    status = job_status(engine, job, ())
    assert (status.state, status.updates_admitted) == ("released", 6)
    kinds = [entry.kind for entry in tools.journal.ledger.entries()]
    assert kinds.count("update.answered") == 6
    # Each site was shown heads, and has said nothing of holding one.
    with reading(engine) as session:
        shown = list(session.scalars(select(ShownHeadRow.peer).distinct()))
    assert len(shown) == 3
    engine.dispose()


class LoggedSite(FakeSite):
    """A site with a ledger of its own that grows by three entries a round, or is cut."""

    def keep(self) -> None:
        self.tree = MerkleTree()
        self.shown: list[int] = []
        self.held = 0
        self.cut_in_round = 0
        self.orders_seen: list[RoundOrder] = []

    def update(self, job, number, weights):
        if number == self.cut_in_round:
            self.tree.truncate(1)
        for entry in range(3):
            self.tree.append(f"{number}/{entry}/{self.cut_in_round}".encode())
        size = self.tree.size
        proofs = tuple(
            HeadProof(old, tuple(one.hex() for one in self.tree.consistency_proof(old)))
            for old in self.shown
            if old < size
        )
        self.shown.append(size)
        payload = super().update(job, number, weights).payload
        head = {"tree_head": self.tree.root().hex(), "tree_size": size, "proofs": proofs}
        return self.sealed(job, number, payload, peer_size=self.held, **head)

    def __call__(self, parcel):
        if parcel.kind == "round":
            order = open_as(RoundOrder, parcel.statement, self.trusted)
            self.orders_seen.append(order)
            self.held = order.tree_size
        return super().__call__(parcel)


def logged(federation, name="north") -> LoggedSite:
    site = federation.sites[name]
    site.__class__ = LoggedSite
    site.keep()
    return site


def test_each_side_keeps_the_others_head_and_proves_its_own(tmp_path):
    federation = Federation(tmp_path)
    site = logged(federation)
    run_job(federation, rounds=3)
    ledger = federation.tools.journal.ledger
    orders = site.orders_seen
    # The coordinator says which head of the site it holds, and proves its growth from the last.
    assert [order.peer_size for order in orders] == [0, 3, 6]
    for before, after in itertools.pairwise(orders):
        assert before.tree_size in [proof.size for proof in after.proofs]
        assert len(after.proofs) <= 2
        proof = next(p for p in after.proofs if p.size == before.tree_size)
        assert [bytes.fromhex(h) for h in proof.hashes] == ledger.consistency_proof(
            before.tree_size, after.tree_size
        )
    peer = f"site/north/{site.identity.public.key_id[:16]}"
    assert ledger.peer(peer).held() == 9
    federation.engine.dispose()


def test_a_site_whose_ledger_was_cut_is_quarantined_and_the_round_goes_on(tmp_path):
    federation = Federation(tmp_path)
    site = logged(federation)
    site.cut_in_round = 2
    job = run_job(federation, rounds=3, quorum=2)
    status = job_status(federation.engine, job, ())
    assert status.state == "released"
    with reading(federation.engine) as session:
        row = session.scalar(select(SiteRow).where(SiteRow.name == "north"))
        assert row.quarantine_code == "peer-head-split"
    entries = federation.tools.journal.ledger.entries()
    (quarantined,) = [e for e in entries if e.kind == "site.quarantined"]
    assert quarantined.fields["code"] == "peer-head-split"
    federation.engine.dispose()


def test_a_hostile_answer_that_ends_the_job_ends_it_in_words(tmp_path):
    """All sites are needed: whoever answers after the quarantine finds the job abandoned."""
    federation = Federation(tmp_path)
    logged(federation).cut_in_round = 2
    job = run_job(federation, rounds=3)
    status = job_status(federation.engine, job, ())
    assert status.state == "abandoned"
    federation.engine.dispose()


def test_a_site_that_was_shown_another_history_of_ours_is_noticed(tmp_path):
    """Who holds more entries of our ledger than there are was shown a ledger that is not ours."""
    federation = Federation(tmp_path)
    site = logged(federation)
    spoiled = []

    def ahead(parcel):
        header = open_as(UpdateHeader, parcel.statement, (site.identity.public,))
        fields = {"tree_head": header.tree_head, "tree_size": header.tree_size}
        spoiled.append(header.round)
        return site.sealed(header.job, header.round, parcel.payload, peer_size=10_000, **fields)

    site.spoil = ahead
    run_job(federation, rounds=2, quorum=2)
    assert spoiled == [1]  # quarantined at once
    with reading(federation.engine) as session:
        row = session.scalar(select(SiteRow).where(SiteRow.name == "north"))
        assert row.quarantine_code == "ledger-behind"
    federation.engine.dispose()
