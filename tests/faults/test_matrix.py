"""docs/faults.md and the fault tests name each other, every one."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.faults.matrix import TABLE, rows

ROOT = TABLE.parents[1]
OF_THE_TABLE = "test_matrix.py"


def names_in(file: Path) -> set[str]:
    """Names of the test functions of a file."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    return {one.name for one in functions if one.name.startswith("test_")}


def test_every_row_names_a_test_that_exists() -> None:
    missing = [(file, name) for file, name in rows() if name not in names_in(ROOT / file)]
    assert missing == []


def test_every_fault_test_has_one_row() -> None:
    ours = {
        (f"tests/faults/{file.name}", name)
        for file in (ROOT / "tests" / "faults").glob("test_*.py")
        if file.name != OF_THE_TABLE
        for name in names_in(file)
    }
    assert len(rows()) == len(set(rows()))
    assert ours - set(rows()) == set()


def test_every_line_of_the_tables_names_its_test() -> None:
    lines = [one for one in TABLE.read_text(encoding="utf-8").splitlines() if one.startswith("| ")]
    bodies = [one for one in lines if not one.startswith(("| fault |", "| --- |"))]
    assert len(bodies) == len(rows()) > 80
    assert all(len(one.split(" | ")) == 4 for one in bodies)
