"""The closed-form fit: errors fall, and where no expert is left out nothing changes."""

import copy

import pytest
import torch

from model_core.errors import WeightsError
from model_core.features import encode_mel
from model_core.layer_fit import FitConfig, fit_encoder
from model_core.nano import nano_whisper
from model_core.upcycle import MixtureConfig, mixtures, upcycle


@pytest.fixture(scope="module")
def dense():
    return nano_whisper().model


@pytest.fixture(scope="module")
def mels():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(80, frames, generator=generator) for frames in (200, 300, 240)]


def split(dense, top_k, **fields):
    config = MixtureConfig(4, 0.25, top_k, variant="split", **fields)
    return upcycle(copy.deepcopy(dense), config)


def states_error(student, dense, mel_BMT):
    with torch.no_grad():
        wanted = encode_mel(dense.model.encoder, mel_BMT)
        return float((encode_mel(student.model.encoder, mel_BMT) - wanted).square().mean())


def test_split_of_which_all_experts_run_is_the_dense_model(dense, mels):
    student = split(dense, 4)
    assert states_error(student, dense, mels[0][None]) <= 1e-10
    fits = fit_encoder(student, dense, mels)
    assert all(fit.after <= 1e-5 for fit in fits)
    assert states_error(student, dense, mels[0][None]) <= 1e-5


def test_decoder_may_run_all_its_experts(dense):
    student = split(dense, 1, decoder_top_k=4)
    assert [block.top_k for block in mixtures(student)] == [1, 1, 4, 4]
    ids_BT, states_BSD = torch.tensor([[1, 5, 9]]), torch.randn(1, 20, 32)
    with torch.no_grad():
        outputs = [
            model.model.decoder(input_ids=ids_BT, encoder_hidden_states=states_BSD, use_cache=False)
            for model in (student, dense)
        ]
    torch.testing.assert_close(
        outputs[0].last_hidden_state, outputs[1].last_hidden_state, rtol=0, atol=1e-5
    )


def test_every_layer_errs_less_also_on_unseen_input(dense, mels):
    before, after = split(dense, 1), split(dense, 1)
    fits = fit_encoder(after, dense, mels)
    assert all(fit.after < fit.before for fit in fits)
    unseen_BMT = torch.randn(1, 80, 260, generator=torch.Generator().manual_seed(4))
    assert states_error(after, dense, unseen_BMT) < 0.8 * states_error(before, dense, unseen_BMT)


def test_only_routers_and_down_projections_move(dense, mels):
    before, after = split(dense, 2), split(dense, 2)
    fit_encoder(after, dense, mels)
    moved = {
        name
        for name, tensor in after.state_dict().items()
        if not torch.equal(tensor, before.state_dict()[name])
    }
    parts = ("router.weight", "experts.down_proj", "shared_down.weight", "shared_down.bias")
    assert moved == {f"model.encoder.layers.{i}.fc1.{part}" for i in range(2) for part in parts}


def test_what_cannot_be_fitted_is_refused(dense, mels):
    with pytest.raises(WeightsError, match="no speech"):
        fit_encoder(split(dense, 2), dense, [])
    with pytest.raises(WeightsError, match="dense"):
        fit_encoder(copy.deepcopy(dense), dense, mels)
    with pytest.raises(WeightsError, match="ridges"):
        FitConfig(ridge=0.0)
