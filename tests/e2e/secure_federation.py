"""Real site agents and the real job loop, without a model: for secure aggregation end to end."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from client_node.agent import SiteAgent
from client_node.outbox import Outbox
from client_node.peers import PeerBook
from client_node.policy import SitePolicy, default_policy
from client_node.private_round import PrivateRounds
from client_node.release_duty import Releases
from client_node.release_state import Withdrawn
from client_node.secure_round import SecureRounds
from client_node.site_log import SiteLog
from client_node.store import PlanBook
from client_node.trainer import TrainedUpdate
from coordinator.job import POLL_S, JobLoop
from coordinator.link import Delivery
from privacy.budget import Budget
from privacy.ledger import Ledger
from privacy.mechanism import privatise
from privacy.parcel import Parcel, ReleaseManifest
from privacy.plan import RoundPlan
from privacy.private_log import PrivateLog
from privacy.random_source import DeterministicRandomSource
from privacy.receipt import write_receipt
from privacy.secure_aggregation.fixed_point import (
    FixedPoint,
    add_noise,
    pack_integers,
    to_integers,
)
from privacy.signing import Identity, PublicIdentity, open_as
from privacy.store import open_engine
from tests.client_node.harness import PASSED
from tests.coordinator.fakes import FakeSite, Federation, StepLink, request, token_of

NAMES = ("east", "north", "south", "west", "york")


class SmallTrainer:
    """Trains on nothing but its name: a fixed sum, and noise that can be drawn again by a test."""

    random_source = DeterministicRandomSource.name

    def __init__(self, site: str) -> None:
        self._site = site
        self.trained: dict[int, np.ndarray] = {}

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        pass

    def sum_D(self, plan: RoundPlan, round_: int) -> torch.Tensor:
        seed = list(f"{self._site}/{round_}".encode())
        return torch.from_numpy(np.random.default_rng(seed).normal(size=plan.adapter.size))

    def source(self, round_: int) -> DeterministicRandomSource:
        return DeterministicRandomSource(f"{self._site}/{round_}".encode(), for_tests=True)

    def check_weights(self, plan: RoundPlan, basis: bytes, vector: bytes) -> None:
        pass

    def train(
        self, plan: RoundPlan, basis: bytes, round_: int, vector: bytes, arrivals: range
    ) -> TrainedUpdate:
        assert round_ not in self.trained, "a round was drawn twice"
        sum_D = self.sum_D(plan, round_)
        if plan.privacy_mode == "secure-aggregation":
            integers_D = to_integers(add_noise(sum_D, plan, self.source(round_)), plan)
            self.trained[round_] = integers_D
            return TrainedUpdate(pack_integers(integers_D), PASSED)
        noisy_D = privatise(sum_D, plan, self.source(round_)).numpy()
        self.trained[round_] = noisy_D
        return TrainedUpdate(noisy_D.tobytes(), PASSED)


class TakesReleases:
    """Verifies a release's signature, and serves nothing."""

    def __init__(self, coordinator: PublicIdentity) -> None:
        self._trusted = (coordinator,)

    def stage(self, statement: bytes, adapter: bytes) -> ReleaseManifest:
        return open_as(ReleaseManifest, statement, self._trusted)

    def activate(self, release: str) -> None:
        pass

    def withdraw(self, release: str, code: str) -> Withdrawn:
        return Withdrawn(was_serving=True, serves=None)


class RealSite(FakeSite):
    """A site's real agent on a folder; `restart` is a crash and a new process."""

    def __init__(self, name: str, coordinator: PublicIdentity, folder: Path, url: str = "") -> None:
        super().__init__(name, coordinator)
        self.folder = folder
        self.url = url or f"sqlite:///{folder / 'auricle.db'}"
        (folder / "logs").mkdir(parents=True)
        self._coordinator = coordinator
        self.trainer = SmallTrainer(name)
        self.peers = ""
        self.agent: SiteAgent | None = None
        self.policy = folder / "policy.toml"
        default_policy(self.policy, coordinators=(coordinator.key_id,), purposes={"dictation": 1e6})
        text = self.policy.read_text().replace('"*decoder*"', '"*"')
        self.policy.write_text(text)
        self.restart()

    def restart(self) -> None:
        self.close()
        site, clock = self.name, lambda: datetime.now(UTC)
        self.engine = open_engine(self.url)
        self.log = SiteLog(self.folder / "logs", clock)
        self.ledger = Ledger(self.engine, self.identity, f"site/{site}", clock)
        policy = SitePolicy.load(self.policy)
        self.budget = Budget(self.engine, site, policy.caps, self.ledger.append, clock)
        heads = self.ledger.peer(f"coordinator/{self._coordinator.key_id[:16]}")

        def keep(parcel: Parcel) -> None:
            write_receipt(self.folder / "receipts", parcel, clock)

        rounds = PrivateRounds(
            site=site,
            identity=self.identity,
            trainer=self.trainer,
            budget=self.budget,
            ledger=self.ledger,
            private_log=PrivateLog(self.engine, self.identity, self.ledger.log_id, clock),
            heads=heads,
            outbox=Outbox(self.engine),
            keep_receipt=keep,
            coins=np.random.default_rng(0),
            code_version="test",
        )
        self.agent = SiteAgent(
            site=site,
            identity=self.identity,
            coordinator=self._coordinator,
            policy=policy,
            plans=PlanBook(self.engine),
            peers=PeerBook(self.engine, site, self.identity.public, policy.peers),
            rounds=rounds,
            secure_rounds=SecureRounds(
                site=site,
                identity=self.identity,
                ledger=self.ledger,
                keep_receipt=keep,
                random=os.urandom,
            ),
            trainer=self.trainer,
            releases=self.releases(),
            budget=self.budget,
            ledger=self.ledger,
            heads=heads,
            keep_receipt=keep,
            log=self.log,
        )

    def releases(self) -> Releases:
        return TakesReleases(self._coordinator)

    def close(self) -> None:
        if self.agent is not None:
            self.engine.dispose()
            self.log.close()

    def __call__(self, parcel: Parcel) -> Parcel:
        assert self.agent is not None
        return self.spoil(self.agent.handle(parcel))

    def events(self, kind: str) -> list[dict]:
        entries = self.ledger.entries(0, self.ledger.size)
        return [dict(entry.fields) for entry in entries if entry.kind == kind]


class MutedLink(StepLink):
    """A StepLink on which a site may fall silent to some kinds of parcels."""

    def __init__(self, sites) -> None:
        super().__init__(sites)
        self.mute: dict[str, set[str]] = {}
        self.carried: list[tuple[str, Parcel, Parcel]] = []  # site, asked, answered

    def send(self, site: str, parcel: Parcel) -> str:
        self.sent.append((site, parcel.kind))
        message = f"m{len(self.sent)}"
        if parcel.kind not in self.mute.get(site, ()):
            answer = self.sites[site](parcel)
            self.carried.append((site, parcel, answer))
            self._replies[message] = Delivery(message, site, answer)
        return message


class SecureFederation(Federation):
    """A coordinator, and the real agents of `names`; `new_url` gives each a database of its own."""

    def __init__(
        self,
        folder: Path,
        names: tuple[str, ...] = NAMES,
        new_url: Callable[[], str] = str,
    ) -> None:
        super().__init__(folder, names=(), url=new_url())
        public = self.identity.public
        self.sites = {name: RealSite(name, public, folder / name, new_url()) for name in names}
        self.online = set(names)
        for site in self.sites.values():
            invite = self.operations.invite(site.name, 3600, approve=True)
            self.operations.enrol(site.enrolment(token_of(invite, self.identity.public)))
        self.link = MutedLink(self.sites)

    def submit(self, **changes) -> str:
        """A secure job of one round among all sites."""
        fields = {"privacy_mode": "secure-aggregation", "rounds": 1, "deadline_s": 1.0}
        return self.operations.submit(request(**(fields | changes)))

    def run(self, job: str, link=None):
        """Run to the end; returns the status."""
        JobLoop(job, self.tools, link or self.link).run(self.clock.wait)
        return self.operations.status(job)

    def step_until(self, job: str, kind: str) -> JobLoop:
        """Run until a parcel of `kind` was sent."""
        loop = JobLoop(job, self.tools, self.link)
        while not any(sent == kind for _, sent in self.link.sent):
            assert not loop.step()
            self.clock.wait(POLL_S)
        return loop

    def expected_D(self, job: str, survivors: tuple[str, ...], round_: int = 1) -> np.ndarray:
        """The sum of what `survivors` trained, over the plan's divisor."""
        plan = self.tools.jobs.load(job).plan
        total = sum(self.sites[site].trainer.trained[round_] for site in survivors)
        return total * FixedPoint.of(plan).step / plan.divisor

    def ledger_events(self, kind: str) -> list[dict]:
        ledger = self.tools.journal.ledger
        return [
            dict(entry.fields) for entry in ledger.entries(0, ledger.size) if entry.kind == kind
        ]

    def close(self) -> None:
        for site in self.sites.values():
            site.close()
        self.engine.dispose()


__all__ = ["NAMES", "Identity", "MutedLink", "RealSite", "SecureFederation", "SmallTrainer"]
