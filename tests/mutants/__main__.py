"""Plant every fault in turn and print what finds it.

    python -m tests.mutants [--json] [--only NAME] [--probes-only]

A fault that a probe must find is judged by rounds of a nano site, in this process. One that a test
must find is judged by that test, run with the fault in the program. Exit status 1 where a fault is
found by something else than the catalogue says, or by nothing where it should be.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import json
import sys

import pytest
import torch
from rich.console import Console
from rich.table import Table

from privacy.errors import AuricleError
from tests.mutants.bench import Bench, open_bench
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Mutant


REWRITE = "ignore::pytest.PytestAssertRewriteWarning"
BESIDE_THE_STEP = ("accounting", "resume")  # no round's own probes can see these


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What found a mutant: "probe NAME", a test's path, "error TYPE", or "" for nothing."""

    mutant: Mutant
    found_by: str

    @property
    def as_expected(self) -> bool:
        """Whether the catalogue says the same."""
        return self.found_by == self.mutant.killer


def judge_by_probes(mutant: Mutant, bench: Bench) -> str:
    """Name of the probe that stops a round with the fault in it, as "probe NAME", or ""."""
    with mutant.planted():
        try:
            failed = bench.failed()
        except (AuricleError, RuntimeError, LookupError) as error:
            return f"error {type(error).__name__}"
    return f"probe {failed}" if failed else ""


def judge_by_test(mutant: Mutant) -> str:
    """The killer's path if it fails with the fault in the program, else ""."""
    quiet = io.StringIO()
    # Modules that this process has imported already cannot have their asserts rewritten.
    options = ["-q", "-x", "-m", "not slow and not shared", "-W", REWRITE]
    with mutant.planted(), contextlib.redirect_stdout(quiet):
        status = pytest.main([mutant.killer, *options])
    return mutant.killer if status == pytest.ExitCode.TESTS_FAILED else ""


def judge(mutant: Mutant, bench: Bench, probes_only: bool) -> Verdict:
    """Probes first: what they find no test needs to."""
    found = "" if mutant.area in BESIDE_THE_STEP else judge_by_probes(mutant, bench)
    if not found and mutant.killer.startswith("tests/") and not probes_only:
        found = judge_by_test(mutant)
    return Verdict(mutant, found)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--only", help="the one mutant of this name")
    parser.add_argument("--probes-only", action="store_true", help="leave out the tests")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    chosen = [m for m in MUTANTS if arguments.only in (None, m.name)]
    with open_bench() as bench:
        verdicts = [judge(mutant, bench, arguments.probes_only) for mutant in chosen]
    rows = [(v.mutant.area, v.mutant.name, v.found_by or "-", v.as_expected) for v in verdicts]
    if arguments.json:
        fields = [
            dict(zip(("area", "fault", "found_by", "as_expected"), r, strict=True)) for r in rows
        ]
        sys.stdout.write(
            json.dumps({"mutants": fields, "found": sum(bool(v.found_by) for v in verdicts)}) + "\n"
        )
    else:
        table = Table("Area", "Fault", "Found by", "As expected")
        for area, name, found_by, as_expected in rows:
            table.add_row(area, name, found_by, "yes" if as_expected else "NO")
        Console().print(table)
    judged = [
        v for v in verdicts if not arguments.probes_only or not v.mutant.killer.startswith("tests/")
    ]
    return 0 if all(v.as_expected for v in judged) else 1


if __name__ == "__main__":
    sys.exit(main())
