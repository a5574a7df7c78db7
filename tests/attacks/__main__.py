"""Print what attacks on an update gain with and without noise: python -m tests.attacks [--json]."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import torch
from rich.console import Console
from rich.table import Table

from tests.attacks.inference import DELTA, EPSILONS, ROUNDS, attack_all


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trials", type=int, default=200, help="trials of each attack")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    outcomes = attack_all(arguments.trials)
    if arguments.json:
        rows = [dataclasses.asdict(outcome) for outcome in outcomes]
        claim = {"delta": DELTA, "rounds": ROUNDS, "trials": arguments.trials}
        sys.stdout.write(json.dumps({"rows": rows, **claim}) + "\n")
        return
    table = Table("Attack", "Chance", "Without noise", *(f"Released, ε = {e:g}" for e in EPSILONS))
    for outcome in outcomes:
        numbers = (outcome.chance, outcome.unnoised, *outcome.released.values())
        table.add_row(outcome.attack, *(f"{number:.2f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()
