"""Releases between the real coordinator and the sites' real agents and model stores."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from client_node.assembly import CheckedReleases
from client_node.model_store import ModelStore, VerifiedRelease
from client_node.release_duty import CanaryError
from coordinator.job import JobLoop
from coordinator.release_delivery import ReleaseDelivery
from privacy.ledger_verify import verify_export
from tests.coordinator.fakes import Federation, StepLink, request, token_of
from tests.e2e.secure_federation import RealSite

BASE_SHA256 = "b" * 64  # of the model room that `fakes.SmallArtifacts` stands for


class ServingSite(RealSite):
    """A real agent over a real model store; `dislikes` is what its canary refuses."""

    dislikes: str | None = None

    def releases(self) -> CheckedReleases:
        self.models = ModelStore(self.folder / "releases", (self._coordinator,), BASE_SHA256)
        return CheckedReleases(self.models, self._canary)

    def _canary(self, release: VerifiedRelease) -> None:
        if release.manifest.release == self.dislikes or self.dislikes == "all":
            raise CanaryError("canary-worse", "worse than the present one", remedy="keep it")


class Hospitals(Federation):
    """A coordinator and two sites that serve."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, names=())
        self.sites = {}
        self.link = StepLink(self.sites)
        for name in ("east", "west"):
            self.join(ServingSite(name, self.identity.public, folder / name))

    def join(self, site: ServingSite) -> None:
        self.sites[site.name] = site
        self.online.add(site.name)
        invite = self.operations.invite(site.name, 3600, approve=True)
        self.operations.enrol(site.enrolment(token_of(invite, self.identity.public)))

    def train(self, **changes: object) -> str:
        """A job of one round; its release."""
        for site in self.sites.values():
            site.trainer.trained.clear()  # it draws each round number once
        job = self.operations.submit(request(rounds=1, **changes))
        JobLoop(job, self.tools, self.link).run(self.clock.wait)
        release = self.operations.status(job).release
        assert release is not None
        return release

    def deliver(self) -> None:
        delivery = ReleaseDelivery(self.tools, self.link)
        for _ in range(6):
            delivery.step()

    def serving(self) -> dict[str, str | None]:
        return {name: site.models.active_id for name, site in self.sites.items()}


@pytest.fixture
def hospitals(tmp_path: Path) -> Iterator[Hospitals]:
    made = Hospitals(tmp_path)
    yield made
    for site in made.sites.values():
        site.close()
    made.engine.dispose()


def test_a_withdrawn_release_is_left_by_every_site_and_both_ledgers_tell(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    first, second = hospitals.train(), hospitals.train()
    assert hospitals.serving() == {"east": second, "west": second}
    hospitals.operations.releases.withdraw(second, "worse-on-terms")
    hospitals.deliver()
    assert hospitals.serving() == {"east": first, "west": first}
    told = [entry.kind for entry in hospitals.tools.journal.ledger.entries()]
    assert told.count("release.withdrawn") == 1
    assert told.count("withdrawal.answered") == 2
    for site in hospitals.sites.values():
        (entry,) = site.events("release.withdrawn")
        assert (entry["release"], entry["serves"]) == (second, first)
        assert (entry["code"], entry["was_serving"]) == ("worse-on-terms", True)
        export = tmp_path / f"{site.name}.jsonl"
        site.ledger.export(export)
        verify_export(export, [site.identity.public])


def test_a_site_that_missed_a_release_takes_the_offer_after_later_rounds_and_goes_on(
    hospitals: Hospitals,
) -> None:
    """The offered manifest's ledger head is older than the heads which the site has seen since."""
    held = hospitals.train(hold=True)
    hospitals.train(hold=True)
    hospitals.operations.releases.publish(held)
    later = hospitals.train(hold=True)
    hospitals.deliver()
    assert hospitals.serving() == {"east": held, "west": held}
    hospitals.operations.releases.publish(later)
    hospitals.deliver()
    assert hospitals.serving() == {"east": later, "west": later}
    last = hospitals.train()  # the next orders prove every head that was shown
    assert hospitals.serving() == {"east": last, "west": last}


def test_a_site_that_joined_late_is_offered_the_current_release_and_told_of_withdrawals(
    hospitals: Hospitals, tmp_path: Path
) -> None:
    first, second = hospitals.train(), hospitals.train()
    hospitals.operations.releases.withdraw(second, "worse")
    late = ServingSite("york", hospitals.identity.public, tmp_path / "york")
    hospitals.join(late)
    hospitals.deliver()
    assert late.models.active_id == first
    standings = {one.release: one.standing for one in late.models.releases()}
    assert standings == {second: "withdrawn", first: "active"}


def test_a_release_that_one_sites_canary_refuses_serves_at_the_others_and_no_finding_leaves(
    hospitals: Hospitals,
) -> None:
    first = hospitals.train()
    west = hospitals.sites["west"]
    west.dislikes = "all"
    second = hospitals.train()
    assert hospitals.serving() == {"east": second, "west": first}
    answers = hospitals.operations.releases.show(second).answers
    assert {one.site: one.code for one in answers} == {"east": "ok", "west": "release-canary"}
    (refused,) = west.events("release.refused")
    assert (refused["release"], refused["code"]) == (second, "canary-worse")
    assert {one.release: one.standing for one in west.models.releases()}[second] == "refused"
    left = b"".join(path.read_bytes() for path in (west.folder / "receipts").iterdir())
    assert b"canary-worse" not in left
    assert b"release-canary" in b"".join(_opened(left))


def test_a_site_killed_before_it_answered_a_withdrawal_is_told_again(
    hospitals: Hospitals,
) -> None:
    first, second = hospitals.train(), hospitals.train()
    hospitals.operations.releases.withdraw(second, "worse")
    hospitals.link.silent = {"east", "west"}
    hospitals.deliver()
    for site in hospitals.sites.values():
        site.restart()
    hospitals.link.silent = set()
    hospitals.deliver()
    assert hospitals.serving() == {"east": first, "west": first}


def _opened(receipts: bytes) -> list[bytes]:
    """Payloads of the DSSE envelopes among the receipts."""
    import base64
    import re

    found = re.findall(rb'"payload":"([A-Za-z0-9+/=]+)"', receipts)
    return [base64.b64decode(one) for one in found]
