"""What secure aggregation costs beside a plain sum: seconds and bytes, at sites and coordinator.

    python -m benchmarks.secure_aggregation [--json] [--sites N ...] [--repeats N]

A whole round is run in one process, parcels sealed and opened as they are between real parties,
without training, disk or network. "plain" is the round without secure aggregation: one signed
float32 update a site, admitted and added up. Each row is timed beside its plain round, in turns,
by the CPU time of the one thread; figures are medians. One site drops out after the shares were
exchanged where `dropped` is 1: the coordinator then recovers its masks.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from coordinator.admission import Admission, admit
from coordinator.aggregate import aggregate
from privacy.parcel import Parcel, RoundOrder, UpdateHeader
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan, TensorSpec
from privacy.secure_aggregation.coordinator import Gathered, add_masked, remove_masks
from privacy.secure_aggregation.messages import MaskOrder, Roster, SurvivorList, UnmaskOrder
from privacy.secure_aggregation.setting import Setting
from privacy.secure_aggregation.site import advertise
from privacy.signing import Identity, open_as, seal

SIZES = (3_584, 270_336)
SITES = (3, 10, 50)
THRESHOLDS = {3: (2, 2), 10: (7, 4), 50: (34, 17)}  # survivors m, honest h, with m + h > n
HEADLINE = (10, 270_336, 1)
TARGET_S = 1.0


@dataclasses.dataclass
class Costs:
    """CPU seconds and bytes of one round, by party."""

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    sent_bytes: dict[str, int] = dataclasses.field(default_factory=lambda: defaultdict(int))
    received_bytes: dict[str, int] = dataclasses.field(default_factory=lambda: defaultdict(int))

    @contextmanager
    def of(self, party: str) -> Iterator[None]:
        """Time a step of `party`."""
        start = time.thread_time()
        yield
        self.seconds[party] += time.thread_time() - start

    @property
    def site_seconds(self) -> float:
        """Of the costliest site."""
        return max(value for party, value in self.seconds.items() if party != "coordinator")


def make_plan(sites: dict[str, Identity], size: int, mode: str) -> RoundPlan:
    """A plan of `size` numbers among `sites`."""
    secure = mode == "secure-aggregation"
    quorum, honest = THRESHOLDS.get(len(sites), (len(sites), len(sites)))
    spec = AdapterSpec("lora", 8, 1.0, ("q_proj",), (), (TensorSpec("w", (size,)),))
    return RoundPlan(
        job="ab" * 8,
        purpose="benchmark",
        base_sha256="0" * 64,
        adapter=spec,
        sampling_rate=0.3,
        noise_multiplier=1.0,
        clipping_norm=1.0,
        rounds=10,
        delta=1e-6,
        expected_subjects=300,
        max_utterances_per_subject=4,
        honest_sites=honest,
        sites=tuple(sites),
        quorum=quorum,
        deadline_s=600.0,
        optimiser=OptimiserSpec("adam", 0.01),
        issued_at="2026-01-01T00:00:00+00:00",
        privacy_mode="secure-aggregation" if secure else "local-noise",
        site_keys=tuple(i.public.raw_hex for i in sites.values()) if secure else (),
    )


class Round:
    """One round of one plan among `sites`."""

    def __init__(self, sites: dict[str, Identity], size: int, mode: str, dropped: int) -> None:
        self.sites = sites
        self.plan = make_plan(sites, size, mode)
        self.costs = Costs()
        self.survivors = list(sites)[dropped:]
        self._operator = Identity.generate()
        rng = np.random.default_rng(0)
        self._updates = {site: rng.normal(size=size).astype(np.float32) for site in self.survivors}

    def _down(self, site: str, message: Any) -> Any:
        """Coordinator seals, site opens; the adapter's weights cost both modes the same."""
        with self.costs.of("coordinator"):
            statement = seal(message, self._operator)
        self.costs.received_bytes[site] += len(statement)
        with self.costs.of(site):
            return open_as(type(message), statement, (self._operator.public,))

    def _up(self, site: str, message: Any, payload: bytes = b"") -> bytes:
        statement = seal(message, self.sites[site])
        self.costs.sent_bytes[site] += len(statement) + len(payload)
        return statement

    def _order(self) -> RoundOrder:
        return RoundOrder(self.plan.job, 1, self.plan.sha256, "0" * 64, "0" * 64, 0)

    def _header(self, site: str, payload: bytes) -> UpdateHeader:
        digest = Parcel("update", b"", payload).payload_sha256
        named = (self.plan.job, 1, site, self.plan.sha256)
        return UpdateHeader(*named, digest, len(payload), "0" * 64, 0)

    def _admit(self, site: str, statement: bytes, payload: bytes) -> None:
        identity = self.sites[site].public
        admission = Admission(self.plan, 1, site, identity, seen=lambda _: False)
        admit(Parcel("update", statement, payload), admission)

    def plain(self) -> np.ndarray:
        """Signed float32 updates, admitted and added."""
        payloads = []
        for site in self.survivors:
            self._down(site, self._order())
            with self.costs.of(site):
                payload = self._updates[site].tobytes()
                statement = self._up(site, self._header(site, payload), payload)
            with self.costs.of("coordinator"):
                self._admit(site, statement, payload)
            payloads.append(payload)
        with self.costs.of("coordinator"):
            return aggregate(payloads, self.plan.adapter.size, 1.0)

    def secure(self) -> np.ndarray:
        """Keys, shares, masked updates, confirmations, unmaskings, sum."""
        setting = Setting.of(self.plan, 1)
        states, gathered = self._keys(setting)
        shares = {}
        for site in self.sites:
            roster: Roster = self._down(site, gathered.roster())
            with self.costs.of(site):
                states[site], sent = states[site].share(roster, os.urandom)
                statement = self._up(site, sent)
            with self.costs.of("coordinator"):
                shares[site] = gathered.shares(statement, site)
        payloads = [self._mask(site, states, gathered, shares) for site in self.survivors]
        listed, unmaskings = self._unmask(states, gathered)
        with self.costs.of("coordinator"):
            return remove_masks(add_masked(payloads, setting), gathered, listed, unmaskings)

    def _keys(self, setting: Setting) -> tuple[dict[str, Any], Gathered]:
        states: dict[str, Any] = {}
        envelopes = {}
        for site in self.sites:
            with self.costs.of(site):
                states[site], keys = advertise(setting, site, os.urandom)
                envelopes[site] = self._up(site, keys)
        with self.costs.of("coordinator"):
            return states, Gathered.of(setting, envelopes)

    def _mask(
        self, site: str, states: dict[str, Any], gathered: Gathered, shares: dict[str, Any]
    ) -> bytes:
        with self.costs.of("coordinator"):
            message = gathered.mask_order(self._order(), shares, site)
        order: MaskOrder = self._down(site, message)
        step = gathered.setting.fixed_point.step
        with self.costs.of(site):
            integers_D = np.rint(self._updates[site] / step).astype(np.int64)
            states[site], payload = states[site].accept(order).mask(integers_D)
            statement = self._up(site, self._header(site, payload), payload)
        with self.costs.of("coordinator"):
            self._admit(site, statement, payload)
        return payload

    def _unmask(
        self, states: dict[str, Any], gathered: Gathered
    ) -> tuple[SurvivorList, dict[str, Any]]:
        with self.costs.of("coordinator"):
            listed = gathered.survivor_list(self.sites, self.survivors)
        confirmations = {}
        for site in self.survivors:
            told = self._down(site, listed)
            with self.costs.of(site):
                states[site], confirmation = states[site].confirm(told)
                confirmations[site] = self._up(site, confirmation)
            with self.costs.of("coordinator"):
                gathered.confirmation(confirmations[site], site, listed)
        unmaskings = {}
        with self.costs.of("coordinator"):
            proof = gathered.unmask_order(confirmations)
        for site in self.survivors:
            order: UnmaskOrder = self._down(site, proof)
            with self.costs.of(site):
                statement = self._up(site, states[site].unmask(order))
            with self.costs.of("coordinator"):
                unmaskings[site] = gathered.unmasking(statement, site, listed)
        return listed, unmaskings


def measure(count: int, size: int, dropped: int, repeats: int) -> dict[str, Any]:
    """One row: medians over `repeats` of a secure round beside a plain one."""
    sites = {f"site-{number:02d}": Identity.generate() for number in range(count)}
    rounds = []
    for turn in range(repeats + 1):
        plain = Round(sites, size, "local-noise", dropped)
        secure = Round(sites, size, "secure-aggregation", dropped)
        apart_D = np.abs(plain.plain() - secure.secure())
        step = Setting.of(secure.plan, 1).fixed_point.step
        assert apart_D.max() <= count * step, "the sums differ by more than the grid"
        if turn:  # the first turn only warms up
            rounds.append((plain.costs, secure.costs))
    plain_costs, secure_costs = rounds[0]
    site = max(secure_costs.sent_bytes, key=lambda name: secure_costs.sent_bytes[name])

    def median(pick: Any) -> float:
        return round(statistics.median(pick(*pair) for pair in rounds), 4)

    return {
        "sites": count,
        "threshold": THRESHOLDS.get(count, (count, count))[0],
        "numbers": size,
        "dropped": dropped,
        "site_seconds": median(lambda _, s: s.site_seconds),
        "plain_site_seconds": median(lambda p, _: p.site_seconds),
        "coordinator_seconds": median(lambda _, s: s.seconds["coordinator"]),
        "plain_coordinator_seconds": median(lambda p, _: p.seconds["coordinator"]),
        "beyond_plain_seconds": median(
            lambda p, s: (
                s.site_seconds
                + s.seconds["coordinator"]
                - p.site_seconds
                - p.seconds["coordinator"]
            )
        ),
        "site_sends_bytes": secure_costs.sent_bytes[site],
        "plain_site_sends_bytes": plain_costs.sent_bytes[site],
        "bytes_ratio": round(secure_costs.sent_bytes[site] / plain_costs.sent_bytes[site], 3),
        "site_receives_bytes_beyond_plain": secure_costs.received_bytes[site]
        - plain_costs.received_bytes[site],
    }


def run(counts: list[int], repeats: int) -> dict[str, Any]:
    """All rows, and the headline: seconds that a round of ten sites takes beyond a plain one."""
    rows = [
        measure(count, size, dropped, repeats)
        for count in counts
        for size in SIZES
        for dropped in (0, 1)
    ]
    chosen = [r for r in rows if (r["sites"], r["numbers"], r["dropped"]) == HEADLINE] or rows
    row = chosen[-1]
    headline = {
        "metric": f"CPU seconds of a round beyond a plain sum, {row['sites']} sites, "
        f"{row['numbers']} numbers, {row['dropped']} dropped, one site and the coordinator",
        "value": row["beyond_plain_seconds"],
        "bytes_ratio": row["bytes_ratio"],
        "target": TARGET_S,
        "met": row["beyond_plain_seconds"] <= TARGET_S,
    }
    return {"rows": rows, "headline": headline}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sites", type=int, nargs="+", default=list(SITES), help="sites a round")
    parser.add_argument("--repeats", type=int, default=3, help="rounds timed for each row")
    arguments = parser.parse_args()
    result = run(arguments.sites, arguments.repeats)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
