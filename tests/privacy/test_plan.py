"""A plan comes from another party: nothing but a well-formed one is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from privacy.errors import PlanError
from privacy.ledger_events import MechanismRun
from privacy.plan import RoundPlan
from tests.privacy.plans import make_plan

FIELDS = json.loads(make_plan().to_json())
WORDS = {"unit", "adjacency", "privacy_mode", "format", "kind", "name", "schedule"}


def leaves(fields: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for name, value in fields.items():
        inner = leaves(value, (*path, name)) if isinstance(value, dict) else [(*path, name)]
        found += inner
    return found


def read(path: tuple[str, ...], value: object) -> RoundPlan:
    fields = json.loads(json.dumps(FIELDS))
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return RoundPlan.from_json(json.dumps(fields).encode())


def test_a_plan_is_read_back_as_it_was_written() -> None:
    plan = make_plan(clipping_norm=2.0, deadline_s=60.5)
    assert RoundPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize("path", leaves(FIELDS), ids=".".join)
def test_a_field_of_another_kind_is_refused(path: tuple[str, ...]) -> None:
    wrong: list[object] = [True, None, {"a": 1}, [None], 2**60, float("nan"), float("inf")]
    if path[-1] in WORDS:
        wrong += ["utterance", ["subject"]]
    if path[-1] in {"basis_sha256"}:
        wrong.remove(None)  # a LoRA adapter has none
    if path[-1] == "scaling":
        wrong.remove(2**60)  # a whole float, as JSON writes it
        wrong.remove(True)  # read as the number that it is in Python
    if path[-1] in {"target_modules", "target_parameters", "sites", "site_keys"}:
        wrong.remove({"a": 1})
    for value in wrong:
        with pytest.raises(PlanError):
            read(path, value)


def test_every_plan_that_is_read_can_stand_on_a_ledger() -> None:
    for path in [("noise_multiplier",), ("sampling_rate",), ("clipping_norm",)]:
        run = MechanismRun.from_plan(read(path, 1), 1, "north")
        assert MechanismRun.from_fields(run.fields(), "north") == run
