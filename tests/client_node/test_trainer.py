"""The trainer on the nano model: the mechanism is exact, and only consenting subjects enter it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from sqlalchemy import delete
from torch import Tensor

from client_node.consent import withdraw_consent
from client_node.errors import RefusalError
from client_node.features import forget_states, window_for
from client_node.noise_marks import NoiseMarkRow
from client_node.trainer import SpeechTrainer
from client_node.weights import ROUNDING_MARGIN
from model_core.adapter import AdapterConfig, attach
from model_core.audio import read_audio
from model_core.base import SpeechBase
from model_core.basis import basis_from_bytes
from model_core.training import collate, encode, make_example, row_losses
from privacy.plan import RoundPlan
from privacy.random_source import DeterministicRandomSource
from privacy.secure_aggregation.fixed_point import FixedPoint, unpack_integers
from privacy.store import writing
from tests.client_node.harness import Site, make_plan


def noiseless(nano: SpeechBase, **changes: object) -> tuple[RoundPlan, bytes]:
    return make_plan(nano, privacy_mode="none", noise_multiplier=0.0, sampling_rate=1.0, **changes)


def trainer_of(site: Site) -> SpeechTrainer:
    parts = site.parts()
    source = DeterministicRandomSource(b"test", for_tests=True)
    return SpeechTrainer(parts.base, parts.store, parts.features, source, rows_per_step=3)


def start_vector(plan: RoundPlan) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return 0.1 * torch.randn(plan.adapter.size, generator=generator)


def packed(vector_D: Tensor) -> bytes:
    return vector_D.numpy().astype("<f4").tobytes()


def unpacked(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.float32)


def subject_gradient(
    nano: SpeechBase, plan: RoundPlan, basis: bytes, recordings: list[tuple[Path, str]]
) -> Tensor:
    """One subject's gradient by plain autograd on peft's own model: no engine, no cache."""
    spec = plan.adapter
    config = AdapterConfig(spec.kind, spec.rank, spec.scaling, spec.target_modules)
    adapter = attach(nano.model, config, basis_from_bytes(basis))
    adapter.load_vector(start_vector(plan))
    model = adapter.peft_model.get_base_model()
    wrapped = {}
    for name, module in model.named_modules():
        if hasattr(module, "lora_B"):
            module.lora_B["default"].weight.requires_grad_(True)
            wrapped[name] = module
    for path, text in recordings:
        samples_N = read_audio(path)
        states_BSD = encode(nano, [samples_N], window_for(len(samples_N) / 16_000))
        example = make_example(nano.tokenizer, text)
        ids_BT, mask_BT = collate([example], pad=nano.tokenizer.end)
        (row_losses(model, states_BSD, ids_BT, mask_BT)[0] / len(recordings)).backward()
    # dL/dR = Uᵀ dL/dB, since B = U R.
    pieces = [
        layer.up.T @ wrapped[layer.name].lora_B["default"].weight.grad for layer in adapter.layers
    ]
    return torch.cat([piece.flatten() for piece in pieces])


def clip(gradient_D: Tensor, norm: float) -> Tensor:
    return gradient_D * min(1.0, norm / float(gradient_D.norm()))


def paths(site: Site) -> dict[str, list[tuple[Path, str]]]:
    """Recordings by subject, from the store."""
    store = site.parts().store
    names = {sha: name for sha, (name, _) in store.placements().items()}
    found: dict[str, list[tuple[Path, str]]] = {}
    for recording in store.recordings("train"):
        pair = (Path(recording.path), recording.text)
        found.setdefault(names[recording.audio_sha256], []).append(pair)
    return found


@pytest.fixture
def peopled(site: Site) -> Site:
    """Five subjects; one has three recordings, and windows differ."""
    site.record("ann", "take one tablet")
    site.record("ann", "twice a day", seconds=2.2)
    site.record("ann", "with water")
    site.record("ben", "warfarin")
    site.record("cat", "no penicillin please", seconds=2.4)
    site.record("dan", "insulin")
    site.record("eve", "heparin", split="heldout")
    return site


@pytest.mark.parametrize("norm", [1e-3, 1e5], ids=["clipped", "unclipped"])
def test_without_noise_a_round_is_the_sum_of_clipped_subject_gradients(
    peopled: Site, nano: SpeechBase, norm: float
) -> None:
    plan, basis = noiseless(nano, clipping_norm=norm, max_utterances_per_subject=20)
    trainer = trainer_of(peopled)
    trainer.check(plan, basis)
    update_D = unpacked(trainer.train(plan, basis, 1, packed(start_vector(plan))).payload)
    by_subject = paths(peopled)
    assert set(by_subject) == {"ann", "ben", "cat", "dan"}  # eve is held out
    expected_D = sum(
        clip(subject_gradient(nano, plan, basis, recordings), norm * (1 - ROUNDING_MARGIN))
        for recordings in by_subject.values()
    )
    assert isinstance(expected_D, Tensor)
    assert float(expected_D.norm()) > 0
    torch.testing.assert_close(
        update_D, expected_D, rtol=1e-3, atol=1e-5 * norm if norm < 1 else 1e-6
    )


def test_one_subject_moves_the_sum_by_at_most_the_clipping_norm(
    peopled: Site, nano: SpeechBase
) -> None:
    plan, basis = noiseless(nano, clipping_norm=0.01, max_utterances_per_subject=20)
    vector = packed(start_vector(plan))
    with_all = unpacked(trainer_of(peopled).train(plan, basis, 1, vector).payload)
    peopled.parts().store.withdraw_consent("ann")
    without = unpacked(trainer_of(peopled).train(plan, basis, 1, vector).payload)
    moved = float((with_all - without).norm())
    assert 0 < moved <= plan.clipping_norm


def test_withdrawn_subject_is_never_sampled_and_leaves_no_cached_state(
    peopled: Site, nano: SpeechBase
) -> None:
    plan, basis = noiseless(nano, clipping_norm=1e5)
    vector = packed(start_vector(plan))
    parts = peopled.parts()
    parts.features.prepare(parts.store.recordings())
    log = peopled.private_log()
    assert withdraw_consent("ann", parts.store, peopled.home.features, log) == 3
    assert forget_states(peopled.home.features, set(parts.store.placements())) == 4
    seen = trainer_of(peopled)._rows([1, 2, 3, 4, 5], 20, 1)
    assert len(seen) == 3  # ben, cat, dan, though all were asked for
    update_D = unpacked(trainer_of(peopled).train(plan, basis, 1, vector).payload)
    rest = [pairs for name, pairs in paths(peopled).items() if name != "ann"]
    expected_D = sum(subject_gradient(nano, plan, basis, pairs) for pairs in rest)
    assert isinstance(expected_D, Tensor)
    torch.testing.assert_close(update_D, expected_D, rtol=1e-3, atol=1e-6)
    (entry,) = [e for e in log.entries() if e.kind == "consent.withdrawn"]
    assert entry.fields == {"subjects": 1, "recordings": 3}


def test_recordings_of_a_subject_are_capped_and_take_turns(peopled: Site, nano: SpeechBase) -> None:
    trainer = trainer_of(peopled)
    subjects = peopled.parts().store.trainable_subjects()
    lengths = [
        sorted(row.example.ids for row in trainer._rows(subjects, 1, round_) if row.subject == 0)
        for round_ in (1, 2, 3)
    ]
    assert all(len(rows) == 1 for rows in lengths)
    assert len({rows[0] for rows in lengths}) == 3


def test_noise_is_added_even_to_an_empty_cohort(site: Site, nano: SpeechBase) -> None:
    plan, basis = make_plan(nano, noise_multiplier=3.0, clipping_norm=2.0)
    vector = packed(start_vector(plan))
    trainer = trainer_of(site)
    updates = torch.stack(
        [unpacked(trainer.train(plan, basis, r, vector).payload) for r in range(1, 60)]
    )
    assert float(updates.std()) == pytest.approx(6.0, rel=0.1)


def test_missing_or_altered_recording_leaves_its_subject_out(
    peopled: Site, nano: SpeechBase
) -> None:
    plan, basis = noiseless(nano, clipping_norm=1e5)
    ((victim, _),) = paths(peopled)["ben"]
    victim.write_bytes(victim.read_bytes()[:-2] + b"\x01\x02")
    parts = peopled.parts()
    assert parts.features.prepare(parts.store.recordings("train")) == 1
    trainer = trainer_of(peopled)
    assert len({row.subject for row in trainer._rows([1, 2, 3, 4], 9, 1)}) == 3
    trainer.train(plan, basis, 1, packed(start_vector(plan)))


def test_plan_for_another_base_or_adapter_is_refused(peopled: Site, nano: SpeechBase) -> None:
    trainer = trainer_of(peopled)
    plan, basis = make_plan(nano)
    spec = plan.adapter
    wrong = {
        "base-checksum": dataclasses.replace(plan, base_sha256="0" * 64),
        "adapter-mismatch": dataclasses.replace(
            plan, adapter=dataclasses.replace(spec, tensors=spec.tensors[:-1])
        ),
    }
    for code, changed in wrong.items():
        with pytest.raises(RefusalError) as caught:
            trainer.check(changed, basis)
        assert caught.value.code == code
    with pytest.raises(RefusalError) as caught:
        trainer.train(plan, basis, 1, packed(torch.full((spec.size,), float("nan"))))
    assert caught.value.code == "payload-mismatch"


def test_adapter_in_the_encoder_is_refused_since_its_states_are_cached(
    peopled: Site, nano: SpeechBase
) -> None:
    config = AdapterConfig("lora", 2, 1.0, (r"model\.encoder\.layers\.1\.self_attn\.q_proj",))
    adapter = attach(nano.model, config)
    plan, _ = make_plan(nano)
    spec = dataclasses.replace(
        plan.adapter,
        kind="lora",
        target_modules=config.target_modules,
        tensors=tuple(
            dataclasses.replace(plan.adapter.tensors[0], name=name, shape=shape)
            for name, shape in adapter.tensor_specs()
        ),
        basis_sha256=None,
    )
    with pytest.raises(RefusalError) as caught:
        trainer_of(peopled).check(dataclasses.replace(plan, adapter=spec), b"")
    assert caught.value.code == "adapter-in-encoder"


def test_states_are_computed_once_and_survive_a_restart(
    peopled: Site, nano: SpeechBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = peopled.parts()
    recordings = parts.store.recordings()
    progress: list[tuple[int, int]] = []
    assert parts.features.prepare(recordings, lambda *at: progress.append(at)) == 0
    assert progress[-1] == (7, 7)
    first = parts.features.states(recordings[1])
    monkeypatch.setattr("client_node.features.encode", None)  # encoding again would fail
    again = peopled.parts().features.states(recordings[1])
    assert first is not None
    assert again is not None
    assert torch.equal(first, again)
    for path in peopled.home.features.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0


def test_a_secure_round_is_the_plain_one_on_the_grid(site: Site, nano: SpeechBase) -> None:
    """Same draws, same gradients, and every probe passed: only the rounding differs."""
    for number in range(4):
        site.record(f"p{number}", "two words")
    plan, basis = make_plan(nano)
    key = "".join(f"{n:02x}" for n in range(32))
    secure = dataclasses.replace(
        plan,
        privacy_mode="secure-aggregation",
        site_keys=(key, key[::-1]),
        quorum=2,
        honest_sites=2,
    )
    vector = packed(start_vector(plan))
    plain_D = unpacked(trainer_of(site).train(plan, basis, 1, vector).payload).double().numpy()
    with writing(site.engine()) as session:  # or the noise probe knows the draw again
        session.execute(delete(NoiseMarkRow))
    trained = trainer_of(site).train(secure, basis, 1, vector)
    grid = FixedPoint.of(secure)
    integers_D = unpack_integers(trained.payload)
    assert integers_D.shape == (plan.adapter.size,)
    apart_D = abs(integers_D * grid.step - plain_D)
    assert 0 < apart_D.max() <= grid.step / 2 + 1e-6
    trained.probes.require_passed()
