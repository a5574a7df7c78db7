"""What composing ε costs: 500 rounds that all differ, and one more round after them.

    python -m benchmarks.accountant [--json] [--rounds N]

The peers stand beside it in the same process, over fewer rounds, as 500 take them minutes:
dp-accounting's own PLDAccountant at its default grid, and Opacus' PRVAccountant, whose ε is the
upper end of its interval. `times_ours` is their time over ours for the same rounds. Seconds are the
CPU time of this process. Every cache of ours is empty at the start: each round's distribution and
Rényi divergences are computed within the time shown. An extra round is a new mechanism composed,
and ε asked for; its row holds the worst of ten.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable

import dp_accounting
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant

from privacy import loss_distribution, renyi
from privacy.accountant import ADD_OR_REMOVE_ONE, REPLACE_ONE, Composition, MechanismEvent, epsilon

DELTA = 1e-6
ROUNDS = 500
PEER_ROUNDS = 20
EXTRA = 10
WHOLE_TARGET_S = 10.0
EXTRA_TARGET_S = 0.2


def mechanisms(rounds: int, adjacency: str) -> list[MechanismEvent]:
    """Rounds whose noise falls and whose sampling rate rises: no two alike, ε near 8."""
    return [
        MechanismEvent(0.02 + 0.04 * t / rounds, 1.3 - 0.3 * t / rounds, 1, adjacency)
        for t in range(rounds)
    ]


def timed(work: Callable[[], float]) -> tuple[float, float]:
    """(CPU seconds, what it returned)."""
    start = time.process_time()
    value = work()
    return time.process_time() - start, value


def ours(rounds: int, adjacency: str) -> list[dict[str, object]]:
    """Rows of our accountant: the rounds at once, one by one, and then some more."""
    events = mechanisms(rounds, adjacency)
    _forget()
    at_once_s, whole = timed(lambda: epsilon(events, DELTA))
    _forget()
    composition = Composition()

    def add_all() -> float:
        for event in events:
            composition.add(event)
        return composition.epsilon(DELTA)

    one_by_one_s, same = timed(add_all)
    extra_s = []
    for number in range(EXTRA):
        extra = MechanismEvent(0.071 + number / 1000, 0.98, 1, adjacency)

        def add_one(extra: MechanismEvent = extra) -> float:
            composition.add(extra)
            return composition.epsilon(DELTA)

        extra_s.append(timed(add_one)[0])
    name = f"ours, {adjacency}"
    return [
        _row(name, f"{rounds} rounds at once", at_once_s, whole),
        _row(name, f"{rounds} rounds one by one", one_by_one_s, same),
        _row(name, "one more round", max(extra_s), composition.epsilon(DELTA)),
    ]


def peers(rounds: int) -> list[dict[str, object]]:
    """Rows of dp-accounting's and Opacus' accountants over the same rounds."""
    events = mechanisms(rounds, ADD_OR_REMOVE_ONE)

    def google() -> float:
        accountant = PLDAccountant()
        for event in events:
            gaussian = dp_accounting.GaussianDpEvent(event.noise_multiplier)
            accountant.compose(dp_accounting.PoissonSampledDpEvent(event.sampling_rate, gaussian))
        return float(accountant.get_epsilon(DELTA))

    def opacus() -> float:
        accountant = PRVAccountant()
        accountant.history = [(e.noise_multiplier, e.sampling_rate, 1) for e in events]
        return float(accountant.get_epsilon(DELTA))

    _forget()
    our_s, value = timed(lambda: epsilon(events, DELTA))
    rows = [_row("ours, add_or_remove_one", f"{rounds} rounds at once", our_s, value)]
    for name, peer in (("dp-accounting PLD", google), ("Opacus PRV", opacus)):
        seconds, value = timed(peer)
        row = _row(name, f"{rounds} rounds at once", seconds, value)
        rows.append({**row, "times_ours": round(seconds / our_s, 1)})
    return rows


def run(rounds: int) -> dict[str, object]:
    """All rows, and the headlines of issue-sized work: whole and extra round."""
    rows = ours(rounds, ADD_OR_REMOVE_ONE) + ours(rounds, REPLACE_ONE) + peers(PEER_ROUNDS)
    whole, one_by_one, extra = (float(str(row["cpu_seconds"])) for row in rows[:3])
    met = max(whole, one_by_one) <= WHOLE_TARGET_S and extra <= EXTRA_TARGET_S
    return {
        "rows": rows,
        "headline": {
            "metric": f"CPU seconds for {rounds} unlike rounds, and for one more",
            "value": [max(whole, one_by_one), extra],
            "target": [WHOLE_TARGET_S, EXTRA_TARGET_S],
            "met": met,
        },
    }


def _forget() -> None:
    loss_distribution.distribution.cache_clear()
    renyi.divergences.cache_clear()


def _row(accountant: str, work: str, seconds: float, value: float) -> dict[str, object]:
    return {
        "accountant": accountant,
        "work": work,
        "cpu_seconds": round(seconds, 4),
        "epsilon": round(value, 5),
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="rounds before the extra one")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")  # Opacus' remarks on its own conversions
    result = run(arguments.rounds)
    if arguments.json:
        print(json.dumps(result))
        return
    for row in result["rows"]:  # type: ignore[attr-defined]
        print("  ".join(f"{key}={value}" for key, value in row.items()))
    print(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
