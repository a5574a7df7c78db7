"""Distillation: it learns, and a run killed at any step ends in the same weights."""

import copy
import itertools

import pytest
import torch

from model_core.distil import (
    DELTA_FILE,
    PROGRESS_FILE,
    DistilConfig,
    distil,
    load_delta,
    save_delta,
    trained_parameters,
)
from model_core.errors import WeightsError
from model_core.lessons import batches, load_lessons, make_lessons, save_lessons
from model_core.nano import nano_base, nano_whisper
from model_core.upcycle import MixtureConfig, base_sha256, upcycle

MARGIN_S = 1.0
SPLIT = MixtureConfig(4, 0.25, 1, variant="split", decoder_top_k=4)
CONFIG = DistilConfig(steps=7, batch=2, learning_rate=1e-3, save_every=2)


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def teacher():
    return nano_base(mixture=MixtureConfig(4, 0.25, 4, variant="split"))


@pytest.fixture(scope="module")
def lessons(teacher):
    generator = torch.Generator().manual_seed(1)
    sizes = (16_000, 15_000, 24_000, 23_900, 8_000, 14_000)
    clips = [0.1 * torch.randn(samples, generator=generator) for samples in sizes]
    return make_lessons(teacher, [*clips, torch.zeros(9_000)], MARGIN_S)


def student():
    return upcycle(copy.deepcopy(nano_whisper().model), SPLIT)


def same(first, second):
    return base_sha256(first) == base_sha256(second)


def test_lessons_leave_out_silence_and_keep_what_the_teacher_said(teacher, lessons, tmp_path):
    assert len(lessons) == 6
    for lesson in lessons:
        assert len(lesson.hidden_PD) == len(lesson.ids) - lesson.first
        assert lesson.mel_MT.shape[1] == 2 * len(lesson.states_SD)
        said = teacher.model.proj_out(lesson.hidden_PD.float()).argmax(-1)
        # Greedy text follows from the states, but for tokens that the rules ban.
        agree = [int(a) == b for a, b in zip(said, lesson.ids[lesson.first + 1 :], strict=False)]
        assert sum(agree) >= len(agree) // 2
    save_lessons(lessons, tmp_path / "lessons.safetensors")
    for read, made in zip(load_lessons(tmp_path / "lessons.safetensors"), lessons, strict=True):
        assert (read.ids, read.first) == (made.ids, made.first)
        assert torch.equal(read.mel_MT, made.mel_MT)
        assert torch.equal(read.hidden_PD, made.hidden_PD)
    (tmp_path / "lessons.safetensors").write_bytes(b"cut")
    with pytest.raises(WeightsError, match="cannot be read"):
        load_lessons(tmp_path / "lessons.safetensors")


@pytest.mark.parametrize("killed_after", [1, 4, 6])
def test_a_killed_run_ends_in_the_weights_of_an_uninterrupted_one(lessons, tmp_path, killed_after):
    whole = student()
    distil(whole, lessons, CONFIG, tmp_path / "whole")

    def kill(step):
        if step.step == killed_after:
            raise KilledError

    with pytest.raises(KilledError):
        distil(student(), lessons, CONFIG, tmp_path / "killed", kill)
    steps = []
    again = student()
    distil(again, lessons, CONFIG, tmp_path / "killed", lambda step: steps.append(step.step))
    saved = (killed_after - 1) // CONFIG.save_every * CONFIG.save_every
    assert steps == list(range(saved + 1, CONFIG.steps + 1))
    assert same(again, whole)
    assert not same(again, student())


def test_a_finished_run_has_nothing_left_to_do(lessons, tmp_path):
    first, second = student(), student()
    distil(first, lessons, CONFIG, tmp_path)
    steps = []
    distil(second, lessons, CONFIG, tmp_path, steps.append)
    assert steps == []
    assert same(first, second)


def test_losses_fall_and_the_decoder_stays(lessons, tmp_path):
    config = DistilConfig(steps=60, batch=6, learning_rate=3e-3)
    trained, reports = student(), []
    distil(trained, lessons, config, tmp_path, reports.append)
    early, late = reports[:10], reports[-10:]
    for part in ("states", "divergence"):
        assert sum(getattr(r, part) for r in late) < 0.8 * sum(getattr(r, part) for r in early)
    before = student().state_dict()
    moved = {n for n, t in trained.state_dict().items() if not torch.equal(t, before[n])}
    assert moved == set(trained_parameters(trained))
    assert not any(parameter.requires_grad for parameter in trained.parameters())


def test_progress_of_another_run_is_refused(lessons, tmp_path):
    distil(student(), lessons, CONFIG, tmp_path)
    for other in (DistilConfig(steps=8, batch=2), DistilConfig(steps=7, batch=2, seed=1)):
        with pytest.raises(WeightsError) as refused:
            distil(student(), lessons, other, tmp_path)
        assert refused.value.code == "distil-mismatch"
    with pytest.raises(WeightsError):
        distil(student(), lessons[:-1], CONFIG, tmp_path)


def test_progress_is_replaced_as_a_whole(lessons, tmp_path):
    distil(student(), lessons, CONFIG, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [PROGRESS_FILE]


def test_delta_carries_what_was_trained(lessons, tmp_path):
    trained, other = student(), student()
    distil(trained, lessons, CONFIG, tmp_path)
    size_bytes = save_delta(trained, tmp_path / DELTA_FILE)
    assert size_bytes < 2.5 * sum(p.numel() for p in trained_parameters(trained).values())
    load_delta(other, tmp_path / DELTA_FILE)
    assert same(other, trained)
    wider = upcycle(nano_whisper().model, MixtureConfig(2, 0.25, 1, variant="split"))
    with pytest.raises(WeightsError, match="does not fit"):
        load_delta(wider, tmp_path / DELTA_FILE)


def test_batches_have_one_length_cover_every_lesson_and_resume_anywhere(lessons):
    first = list(itertools.islice(batches(lessons, 2, seed=5), 12))
    assert all(len({len(lesson.states_SD) for lesson in batch}) == 1 for batch in first)
    ids = [[id(lesson) for lesson in batch] for batch in first]
    assert set(itertools.chain(*ids)) == {id(lesson) for lesson in lessons}
    later = itertools.islice(batches(lessons, 2, seed=5, first_batch=7), 5)
    assert [[id(lesson) for lesson in batch] for batch in later] == ids[7:]


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"batch": 0}, {"warm_up": 1.0}])
def test_impossible_runs_are_refused(wrong, lessons, tmp_path):
    with pytest.raises(WeightsError):
        DistilConfig(**wrong)
    with pytest.raises(WeightsError, match="no speech"):
        distil(student(), [], CONFIG, tmp_path)
