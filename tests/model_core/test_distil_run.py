"""From a checkpoint and recordings to a base, killed and resumed, on the nano model."""

import pytest
import torch

from model_core.base import load_base, make_base
from model_core.distil import DistilConfig
from model_core.distil_run import BASE_FOLDER, distil_split
from model_core.errors import WeightsError
from model_core.features import encode_mel, log_mel
from model_core.nano import nano_whisper
from model_core.upcycle import MixtureConfig

SPLIT = MixtureConfig(4, 0.25, 1, variant="split", decoder_top_k=4)
CONFIG = DistilConfig(steps=4, batch=2, save_every=2)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def recordings():
    generator = torch.Generator().manual_seed(2)
    return [0.1 * torch.randn(n, generator=generator) for n in (16_000, 20_000, 12_000)]


def run(folder, recordings, report=lambda _: None, config=CONFIG):
    return distil_split(
        nano_whisper(),
        recordings,
        folder,
        mixture=SPLIT,
        config=config,
        margin_s=1.0,
        report=report,
    )


def test_killed_anywhere_it_resumes_to_the_same_base(tmp_path, recordings):
    whole = run(tmp_path / "whole", recordings)
    loaded = load_base(tmp_path / "whole" / BASE_FOLDER)
    assert loaded.base_sha256 == whole.base_sha256
    assert loaded.mixture == SPLIT

    killed = []

    def kill(at):
        if (at.stage, at.done) not in killed and at.done >= 3:
            killed.append((at.stage, at.done))
            raise KilledError

    again = None
    while again is None:
        try:
            again = run(tmp_path / "killed", recordings, kill)
        except KilledError:
            continue
    assert killed == [("lessons", 3), ("training", 3), ("training", 4)]
    assert again.base_sha256 == whole.base_sha256


def test_a_folder_of_another_run_is_refused(tmp_path, recordings):
    run(tmp_path, recordings)
    for other in ({"recordings": recordings[:2]}, {"config": DistilConfig(steps=5)}):
        with pytest.raises(WeightsError) as refused:
            run(tmp_path, **{"recordings": recordings, **other})
        assert refused.value.code == "distil-mismatch"


def test_no_steps_leave_it_at_the_fit(tmp_path, recordings):
    reports = []
    fitted = run(tmp_path, recordings, reports.append, DistilConfig())
    assert reports == []
    assert not (tmp_path / "lessons.safetensors").exists()
    assert load_base(tmp_path / BASE_FOLDER).base_sha256 == fitted.base_sha256
    plain = make_base(nano_whisper(), SPLIT)
    mel_BMT = log_mel(recordings[:1], 2.0)
    with torch.no_grad():
        wanted, unfitted, ours = (
            encode_mel(model.model.encoder, mel_BMT)
            for model in (nano_whisper().model, plain.model, fitted.model)
        )
    assert (ours - wanted).square().mean() < 0.8 * (unfitted - wanted).square().mean()
