"""The loop that privacy/README.md shows, run as it stands."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import peft
import pytest
import torch

from privacy.ledger_verify import verify_export

README = Path(__file__).parents[2] / "privacy" / "README.md"
WIDTH = 6


def snippet() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    return code


class Small(torch.nn.Module):
    """A frozen layer whose adapter must learn `target`."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x_BTw: torch.Tensor) -> torch.Tensor:
        return self.layer(x_BTw)


def test_the_loop_learns_within_its_budget_and_leaves_a_ledger_that_verifies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(1)
    torch.manual_seed(5)
    config = peft.LoraConfig(r=2, target_modules=["layer"], lora_dropout=0.0)
    model = peft.get_peft_model(Small(), config)
    target = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    base = model.base_model.model.layer.base_layer.weight
    with torch.no_grad():
        target.weight.copy_(base + 1.5 * torch.outer(torch.randn(WIDTH), torch.randn(WIDTH)))
    people = [torch.randn(rows % 3 + 1, 4, WIDTH) for rows in range(400)]

    def loss_of(person: torch.Tensor):
        return lambda: (model(person) - target(person).detach()).square().mean(dim=(1, 2))

    def error() -> float:
        with torch.no_grad():
            return float(torch.cat([loss_of(person)() for person in people]).mean())

    before = error()
    names = {"model": model, "people": people, "loss_of": loss_of, "torch": torch}
    scope = {**names, "datetime": datetime, "UTC": UTC}
    exec(compile(snippet(), str(README), "exec"), scope)

    assert error() < 0.5 * before
    spent = scope["budget"].spent("dictation")
    assert spent.reserved == 0
    assert spent.committed == 30
    assert 3.9 < spent.epsilon_loc <= 4.0
    scope["ledger"].export(tmp_path / "ledger.jsonl")
    scope["database"].dispose()
    report = verify_export(tmp_path / "ledger.jsonl")
    assert report.valid
    assert report.epsilons[0].epsilon_loc == pytest.approx(spent.epsilon_loc, rel=1e-6)


def test_the_loop_is_short() -> None:
    lines = [line for line in snippet().splitlines() if line and "import" not in line]
    assert len(lines) <= 20
