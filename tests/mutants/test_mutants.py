"""Probes stop rounds with planted faults in them; every survivor is explained in the docs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.mutants.__main__ import judge_by_probes
from tests.mutants.bench import open_bench
from tests.mutants.catalogue import MUTANTS
from tests.mutants.mutant import Edit, Mutant

DOCS = Path(__file__).parents[2] / "docs" / "privacy-mutants.md"
QUICK = {
    "gradients-not-clipped",
    "clipped-once-a-microbatch",
    "sum-divided-by-the-realised-lot",
    "noise-without-the-clipping-norm",
    "key-from-the-call-count",
    "lots-of-a-fixed-size",
    "everybody-trains",
}
FOUND_BY_PROBES = [mutant for mutant in MUTANTS if mutant.killer.startswith("probe")]


@pytest.fixture(scope="module")
def bench():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with open_bench() as made:
        yield made
    torch.set_num_threads(before)


def test_the_program_itself_passes(bench):
    assert bench.failed() == ""


@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(mutant, id=mutant.name, marks=[] if mutant.name in QUICK else pytest.mark.slow)
        for mutant in FOUND_BY_PROBES
    ],
)
def test_a_probe_stops_a_round_with_the_fault(bench, mutant):
    assert judge_by_probes(mutant, bench) == mutant.killer


def test_a_fault_leaves_with_its_block_and_a_stale_one_is_an_error():
    def answer():
        return 1 + 1

    mutant = Mutant("plus", "", "", (Edit(answer, "1 + 1", "1 + 2"),), "")
    with mutant.planted():
        assert answer() == 3
    assert answer() == 2
    stale = Mutant("plus", "", "", (Edit(answer, "1 - 1", "0"),), "")
    with pytest.raises(LookupError), stale.planted():
        pass


def test_names_are_distinct_and_every_fault_is_in_the_docs():
    assert len(MUTANTS) >= 40
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    text = DOCS.read_text(encoding="utf-8")
    for mutant in MUTANTS:
        row = f"| `{mutant.name}` | {mutant.killer or 'nothing'} |"
        assert row in text, mutant.name
        assert mutant.killer or mutant.why, f"{mutant.name} survives without a reason"
        assert mutant.why in text
