"""Job requests: defaults, file and options, and which wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.errors import CommandError
from deploy.recipe import default_recipe, job_request


def test_options_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "job.toml"
    file.write_text('rounds = 3\npurpose = "names"\n[adapter]\nrank = 2\n')
    fields = job_request(file, {"rounds": 5, "quorum": None})
    assert fields["rounds"] == 5
    assert fields["purpose"] == "names"
    assert fields["adapter"] == {**default_recipe()["adapter"], "rank": 2}
    assert "quorum" not in fields


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"noise_multiplier": 1.5}, {"noise_multiplier"}),
        ({"epsilon": 3.0}, {"epsilon"}),
        ({"privacy_mode": "none"}, set()),
    ],
)
def test_target_and_noise_never_both_remain(options: dict[str, object], kept: set[str]) -> None:
    fields = job_request(None, options)
    assert {"epsilon", "noise_multiplier"} & set(fields) == kept


@pytest.mark.parametrize("text", ["rounds = ", '{"rounds": 3'])
def test_a_file_that_cannot_be_read_is_said(tmp_path: Path, text: str) -> None:
    file = tmp_path / ("job.json" if text.startswith("{") else "job.toml")
    file.write_text(text)
    with pytest.raises(CommandError):
        job_request(file, {})
    with pytest.raises(CommandError):
        job_request(tmp_path / "missing.toml", {})


def test_the_default_recipe_is_a_request_that_the_coordinator_takes(tmp_path: Path) -> None:
    from coordinator.request import parse_request

    request = parse_request(job_request(None, {"base_folder": str(tmp_path)}))
    assert request.epsilon is not None
    assert request.adapter.target_modules
