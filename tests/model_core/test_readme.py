"""The README's snippets run as they are written, one after another, beside a recording."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import soundfile
import torch
from peft import PeftModel

from model_core.twin import twin
from tests.model_core.synthesis import say

README = Path(__file__).parents[2] / "model_core" / "README.md"


def snippets() -> dict[str, str]:
    """The Python under each heading."""
    found = re.findall(
        r"^## ([^\n]+)\n(?:(?!^## ).)*?^```python\n(.*?)^```$",
        README.read_text(encoding="utf-8"),
        re.DOTALL | re.MULTILINE,
    )
    return dict(found)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_every_snippet_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    soundfile.write("visit.wav", say("Please start metformin.").numpy(), 16_000)
    names: dict[str, object] = {}
    for heading, snippet in snippets().items():
        torch.manual_seed(0)
        exec(compile(snippet, f"README, {heading}", "exec"), names)
    printed = capsys.readouterr().out.splitlines()
    assert "metformin" in printed[0].lower()
    assert "metformin" in printed[1].lower()
    assert all(float(rate) < 0.5 for rate in printed[2:4])
    PeftModel.from_pretrained(twin(names["base"].model), "adapter")


def test_snippets_take_at_most_ten_lines_after_their_imports():
    for heading, snippet in snippets().items():
        lines = [line for line in snippet.splitlines() if line.strip()]
        own = [line for line in lines if not line.startswith(("import ", "from "))]
        assert len(own) <= 10, heading
    assert {"Transcribe", "Adapt", "Evaluate", "Export and quantise"} <= snippets().keys()
