"""ε derived from a ledger: every reservation composed, every claim compared.

Holds the rules that a log's events must keep among themselves: no training without a reservation
(I1), no second training on one reservation (I2), no claim that the reservations do not give. What
the log's own owner could write to make its spend look smaller is a fault too: spend under a second
site's name, one round under two purposes, training after a probe stopped it, or without probes
where earlier rounds had them.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import replace

from privacy.accountant import Composition, MechanismEvent, epsilon, epsilon_sec
from privacy.errors import AccountingError
from privacy.ledger_entry import Entry, EntryError
from privacy.ledger_events import RESERVED, STOPPED, TRAINED, MechanismRun, TrainedRound

ALL_PURPOSES = "all purposes"
CLAIM_TOLERANCE = 1e-3  # relative and absolute: what two versions of an accountant may differ by


@dataclasses.dataclass(frozen=True)
class DerivedEpsilon:
    """ε of one (site, purpose) after a whole log, derived from its reservations alone.

    Attributes:
        purpose: `ALL_PURPOSES` for what a person who is in every round spends in all.
        delta: the smallest that a reservation states.
        epsilon_loc: composed over all reservations, at `delta`; a crash counts as spent.
        epsilon_sec: the same under secure aggregation with `honest_sites` honest sites, the fewest
            that a training states.
        claimed_loc: what the site's last `round.trained` claimed, None where none was trained.
        reserved: rounds reserved.
        trained: rounds trained.
    """

    site: str
    purpose: str
    delta: float
    epsilon_loc: float
    epsilon_sec: float
    honest_sites: int
    claimed_loc: float | None
    reserved: int
    trained: int


class Spend:
    """Reservations and trainings of one site for one purpose, in the order of its log."""

    def __init__(self, site: str, purpose: str) -> None:
        self._site = site
        self._purpose = purpose
        self._runs: dict[tuple[str, int], MechanismRun] = {}  # by (job, round), oldest first
        self._trained: dict[tuple[str, int], TrainedRound] = {}
        self._composed = {1: Composition()}  # by how many honest sites add their noise
        self._claims = True

    @property
    def reserved(self) -> int:
        """Rounds reserved."""
        return len(self._runs)

    def reserve(self, run: MechanismRun) -> None:
        """Count a reservation; the same one again, as after a crash, counts once.

        Raises ValueError when the round was reserved for another mechanism.
        """
        key = (run.job, run.round)
        if key not in self._runs:
            for sites, composed in self._composed.items():
                composed.add(_among(run.event(), sites))
            self._runs[key] = run
        elif self._runs[key] != run:
            raise ValueError("it reserves a round again, for another mechanism")

    def train(self, trained: TrainedRound) -> None:
        """Check a training and its claim. Raises ValueError saying what is wrong."""
        key = (trained.run.job, trained.run.round)
        if key not in self._runs:
            raise ValueError("it trains a round that was not reserved")
        if self._runs[key] != trained.run:
            raise ValueError("it trains with another mechanism than was reserved")
        if key in self._trained:
            raise ValueError("it trains a round twice on one reservation")
        self._check_claims(trained)
        self._trained[key] = trained

    def take_over(self, other: Spend) -> None:
        """Count another purpose's rounds here too; its claims were of that purpose alone."""
        self._runs |= other._runs
        self._trained |= other._trained
        self._claims = False

    def derive(self) -> DerivedEpsilon:
        """ε after everything counted so far."""
        # All at once, as the budget composes them: claim by claim differs in the ninth digit.
        events = [run.event() for run in self._runs.values()]
        last = list(self._trained.values())[-1] if self._trained else None
        # Neither follows the latest round: one with a large δ would shrink what is said of all.
        delta = min(run.delta for run in self._runs.values())
        honest_sites = min((done.honest_sites for done in self._trained.values()), default=1)
        return DerivedEpsilon(
            site=self._site,
            purpose=self._purpose,
            delta=delta,
            epsilon_loc=epsilon(events, delta),
            epsilon_sec=epsilon_sec(events, delta, honest_sites),
            honest_sites=honest_sites,
            claimed_loc=last.epsilon_loc if last and self._claims else None,
            reserved=self.reserved,
            trained=len(self._trained),
        )

    def _epsilon(self, delta: float, sites: int) -> float:
        """ε of every reservation so far, where the noise of `sites` sites adds up."""
        if sites not in self._composed:
            earlier = (_among(run.event(), sites) for run in self._runs.values())
            self._composed[sites] = Composition(earlier)
        return self._composed[sites].epsilon(delta)

    def _check_claims(self, trained: TrainedRound) -> None:
        delta = trained.run.delta
        claims = (
            ("ε_loc", trained.epsilon_loc, 1),
            ("ε_sec", trained.epsilon_sec, trained.honest_sites),
        )
        for name, claimed, sites in claims:
            most = self._epsilon(delta, sites)
            if _equal(claimed, most):
                continue
            # A claim may be of the moment of its reservation or of its training: another job may
            # have reserved in between.
            least = epsilon_sec(self._events_when_reserved(trained.run), delta, sites)
            if claimed < least and not _equal(claimed, least):
                raise ValueError(f"it claims {name} {claimed:.6g}; {least:.6g} was spent")
            if claimed > most:
                raise ValueError(
                    f"it claims {name} {claimed:.6g}, but the log's reservations give {most:.6g}: "
                    "some are missing"
                )

    def _events_when_reserved(self, run: MechanismRun) -> list[MechanismEvent]:
        runs = list(self._runs.values())
        return [earlier.event() for earlier in runs[: runs.index(run) + 1]]


class SpendBook:
    """Every (site, purpose) of one log."""

    def __init__(self, log_id: str) -> None:
        self._log_id = log_id
        self._spends: dict[tuple[str, str], Spend] = {}
        self._purposes: dict[tuple[str, int], str] = {}  # by (job, round)
        self._stopped: set[tuple[str, int]] = set()
        self._ended: set[tuple[str, int]] = set()
        self._probed = False

    def note(self, entry: Entry) -> None:
        """Take in the next entry. Raises EntryError when a reservation or training is wrong."""
        try:
            if entry.kind == RESERVED:
                run = MechanismRun.from_fields(entry.fields, self._log_id)
                self._reserve(run)
            elif entry.kind == TRAINED:
                trained = TrainedRound.from_fields(entry.fields, self._log_id)
                self._train(trained)
            elif entry.kind == STOPPED:
                self._stop(entry)
        except (ValueError, AccountingError) as error:
            raise EntryError(
                f"entry {entry.index} ({entry.kind}) is signed and wrong: {error}",
                index=entry.index,
                code="ledger-claim",
            ) from error

    def derive(self) -> tuple[DerivedEpsilon, ...]:
        """ε of each purpose in the order in which they first appear; of several, of all too.

        Raises AccountingError when the accountants disagree about one.
        """
        spent = [spend for spend in self._spends.values() if spend.reserved]
        if len(spent) > 1:
            # One person may be in the rounds of each: five purposes at ε = 8 are more than 8.
            together = Spend(next(site for site, _ in self._spends), ALL_PURPOSES)
            for spend in spent:
                together.take_over(spend)
            spent.append(together)
        return tuple(spend.derive() for spend in spent)

    def _reserve(self, run: MechanismRun) -> None:
        if any(run.site != site for site, _ in self._spends):
            raise ValueError("it reserves for another site than the rest of this log")
        if self._purposes.setdefault((run.job, run.round), run.purpose) != run.purpose:
            raise ValueError("it reserves a round again, for another purpose")
        self._spend(run).reserve(run)

    def _train(self, trained: TrainedRound) -> None:
        key = (trained.run.job, trained.run.round)
        if key in self._stopped:
            raise ValueError("it trains a round that a probe had stopped")
        if self._probed and not trained.probes:
            raise ValueError("it trains without probes, which earlier rounds of this log had")
        self._spend(trained.run).train(trained)
        self._ended.add(key)
        self._probed = self._probed or bool(trained.probes)

    def _stop(self, entry: Entry) -> None:
        job, round_ = entry.fields.get("job"), entry.fields.get("round")
        if not isinstance(job, str) or not isinstance(round_, int):
            raise ValueError("it does not name the round that it stopped")
        if (job, round_) not in self._purposes:
            raise ValueError("it stops a round that was not reserved")
        if (job, round_) in self._ended:
            raise ValueError("it stops a round that was trained")
        self._stopped.add((job, round_))

    def _spend(self, run: MechanismRun) -> Spend:
        key = (run.site, run.purpose)
        return self._spends.setdefault(key, Spend(*key))


def _among(event: MechanismEvent, sites: int) -> MechanismEvent:
    return replace(event, noise_multiplier=event.noise_multiplier * math.sqrt(sites))


def _equal(claimed: float, derived: float) -> bool:
    if math.inf in (claimed, derived):
        return claimed == derived
    return math.isclose(claimed, derived, rel_tol=CLAIM_TOLERANCE, abs_tol=CLAIM_TOLERANCE)
