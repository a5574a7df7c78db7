"""A fault for every round of a job, drawn from a seed, and what each of them must lead to."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

from tests.faults.failpoints import Fault, When
from tests.faults.federation import ADVERSARY, SITES, Place, Script
from tests.faults.hostile import HOSTILE
from tests.faults.links import WIRE_FAULTS

# A site that dies before its update is sealed has lost the round; after that it has not.
LOSING: tuple[tuple[str, When], ...] = (
    ("site reserves", "after"),
    ("site adds noise", "before"),
    ("site adds noise", "after"),
    ("site keeps a receipt", "after"),
)
KEEPING: tuple[tuple[str, When], ...] = (
    ("site seals", "after"),
    ("site commits", "after"),
    ("site settles", "before"),
)
COORDINATOR: tuple[tuple[str, When], ...] = (
    ("coordinator opens a round", "before"),
    ("coordinator opens a round", "after"),
    ("coordinator admits", "before"),
    ("coordinator admits", "after"),
    ("coordinator reads updates", "after"),
    ("coordinator checkpoints", "before"),
    ("coordinator checkpoints", "after"),
)
KINDS = ("site dies", "coordinator dies", "wire fails", "update is hostile")


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Faults by round, and their consequences.

    Attributes:
        script: the faults.
        kills: how many processes die.
        lost: for a round, the site whose update is not in it.
        undrawn: (site, round) in which the site died before it drew noise.
        fired: names of the faults, as they are found when they have happened.
        told: a line for each round, for people.
    """

    script: Script
    kills: int
    lost: dict[int, str]
    undrawn: frozenset[tuple[str, int]]
    fired: frozenset[str]
    told: tuple[str, ...]


def draw(place: Place, rounds: int, seed: int) -> Schedule:
    """One fault in each round; the four kinds take turns, in an order of their own each time."""
    chance = random.Random(seed)
    made = _Draft(place, chance)
    kinds: list[str] = []
    for round_ in range(1, rounds + 1):
        kinds = kinds or chance.sample(KINDS, len(KINDS))
        made.add(round_, kinds.pop())
    return made.schedule()


class _Draft:
    def __init__(self, place: Place, chance: random.Random) -> None:
        self._place = place
        self._chance = chance
        self._deaths: dict[str, list[Fault]] = {}
        self._wire: dict[tuple[int, str], str] = {}
        self._hostile: dict[int, str] = {}
        self._lost: dict[int, str] = {}
        self._undrawn: set[tuple[str, int]] = set()
        self._fired: set[str] = set()
        self._told: list[str] = []

    def add(self, round_: int, kind: str) -> None:
        site = self._chance.choice(SITES)
        if kind == "site dies":
            step = self._chance.choice((*LOSING, *KEEPING))
            self._dies(site, round_, step)
            if step in LOSING:
                self._lost[round_] = site
            if step in LOSING[:2]:
                self._undrawn.add((site, round_))
        elif kind == "coordinator dies":
            self._dies("coordinator", round_, self._chance.choice(COORDINATOR))
        elif kind == "wire fails":
            fault = self._chance.choice(WIRE_FAULTS)
            self._wire[round_, site] = fault
            if fault == "answer too late":
                self._lost[round_] = site
            self._tell(round_, site, fault)
        else:
            self._hostile[round_] = self._chance.choice(sorted(HOSTILE))
            self._tell(round_, ADVERSARY, self._hostile[round_])

    def _dies(self, party: str, round_: int, step: tuple[str, When]) -> None:
        fired = self._tell(round_, party, f"kill -9 {step[1]}: {step[0]}")
        self._deaths.setdefault(party, []).append(Fault(*step, round_, fired))

    def _tell(self, round_: int, party: str, what: str) -> Path:
        self._told.append(f"round {round_}: {party}: {what}")
        fired = self._place.fired(f"{round_:02d}-{party}")
        self._fired.add(fired.name)
        return fired

    def schedule(self) -> Schedule:
        deaths = {party: tuple(faults) for party, faults in self._deaths.items()}
        return Schedule(
            script=Script(deaths, self._wire, self._hostile),
            kills=sum(map(len, deaths.values())),
            lost=self._lost,
            undrawn=frozenset(self._undrawn),
            fired=frozenset(self._fired),
            told=tuple(self._told),
        )
