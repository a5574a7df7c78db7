"""Private training of one round: sample, clip each subject's gradient, sum, noise, probe, pack.

g = Σ_{u in Poisson(q)} clip_C(∇ mean loss of u's recordings) + N(0, σ²C²I), with every constant
from the signed plan. The encoder is frozen and its states are cached, which is exact only while no
adapter sits in it: a plan that puts one there is refused.

Shape suffixes: B rows (recordings of a step), S encoder states, D trained numbers or width,
T decoder positions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from client_node.errors import RefusalError
from client_node.features import FeatureStore
from client_node.invented_rows import INVENTED_VOCABULARY, invent_rows
from client_node.noise_marks import StoredMarks
from client_node.store import EVERYONE, Recording, SiteStore
from client_node.weights import ROUNDING_MARGIN, require_bounded
from model_core.adapter import Adapter, AdapterConfig, attach
from model_core.base import SpeechBase
from model_core.basis import basis_from_bytes
from model_core.errors import AdapterError, TextError
from model_core.training import Example, collate, make_example, row_losses
from privacy.mechanism import privatise
from privacy.per_subject import PerSubjectEngine, refuse_unsupported
from privacy.plan import RoundPlan
from privacy.probes import (
    Invented,
    LotRow,
    Loudness,
    ObservedSource,
    ProbedRound,
    ProbeReceipt,
    probe,
)
from privacy.random_source import RandomSource
from privacy.secure_aggregation.fixed_point import add_noise, pack_integers, to_integers

_Loss = Callable[[], Tensor]
ENCODER = "model.encoder."
DEFAULT_LANGUAGE = "en"
_DISAGREE = "check that coordinator and site run the same base and the same version of Auricle"


@dataclasses.dataclass(frozen=True)
class _Row:
    """One recording ready to train on; `share` makes a subject's loss the mean of its rows."""

    subject_id: int  # the store's
    subject: int  # number within the cohort
    states_SD: Tensor  # noqa: N815 - shape suffix
    example: Example
    share: float


@dataclasses.dataclass(frozen=True)
class _Attached:
    """A plan's adapter on the base, the engine over it, and what its probes learnt of it."""

    plan_sha256: str
    adapter: Adapter
    engine: PerSubjectEngine
    loudness: Loudness


@dataclasses.dataclass(frozen=True)
class TrainedUpdate:
    """A round's noisy sum, packed as [D] little-endian float32, and what its probes found."""

    payload: bytes
    probes: ProbeReceipt


class SpeechTrainer:
    """Trains plans on a site's recordings. Holds one adapter at a time."""

    def __init__(
        self,
        base: SpeechBase,
        store: SiteStore,
        features: FeatureStore,
        source: RandomSource,
        rows_per_step: int,
        *,
        one_subject_per_step: bool = False,
    ) -> None:
        """`rows_per_step` recordings go through the decoder together: memory, not mathematics.

        With `one_subject_per_step` they are of one subject, whose gradient is then the same to the
        last bit whoever else is in the lot; by default they share the rounding of float32.
        """
        self._base = base
        self._store = store
        self._features = features
        self._source = source
        self._rows_per_step = rows_per_step
        self._one_subject_per_step = one_subject_per_step
        self._marks = StoredMarks(store.engine)
        self._attached: _Attached | None = None

    @property
    def random_source(self) -> str:
        """Name of the source of sampling and noise."""
        return self._source.name

    def check(self, plan: RoundPlan, basis: bytes) -> None:
        """Attach the plan's adapter.

        Raises RefusalError (base-checksum, adapter-mismatch, adapter-in-encoder) or
        UnsupportedLayerError.
        """
        self._attach(plan, basis)

    def check_weights(self, plan: RoundPlan, basis: bytes, vector: bytes) -> None:
        """Load the adapter's numbers `vector`, packed as [D] little-endian float32.

        `vector` has passed `client_node.weights.require_trainable`: beyond it clipping bounds
        nobody. Raises RefusalError ("payload-mismatch" where `vector` is not D finite numbers,
        "weights-out-of-range" where the adapter outweighs a layer). Reads no recording.
        """
        self._load(plan, basis, vector)

    def train(
        self,
        plan: RoundPlan,
        basis: bytes,
        round_: int,
        vector: bytes,
        arrivals: range = EVERYONE,
    ) -> TrainedUpdate:
        """One round from the adapter's numbers `vector`, packed as [D] little-endian float32.

        Samples those who arrived in `arrivals` (`privacy.budget.Budget.arrivals`). Raises
        RefusalError as `check_weights` does, and ProbeError, after which nothing of the round
        may leave. For secure aggregation the payload is [D] little-endian int64 on the plan's
        grid, and the probes look at the update that is rounded to it.
        """
        attached = self._load(plan, basis, vector)
        with attached.adapter.training_mode():
            return self._train(attached, plan, round_, arrivals)

    def _train(
        self, attached: _Attached, plan: RoundPlan, round_: int, arrivals: range
    ) -> TrainedUpdate:
        draws = ObservedSource(self._source)
        subjects = self._store.trainable_subjects(arrivals)
        chosen = draws.poisson_sample(len(subjects), plan.sampling_rate)
        cohort = [subjects[index] for index in chosen]
        rows = self._rows(cohort, plan.max_utterances_per_subject, round_, plan.context_weight)
        sum_D, _ = self._clipped_sum(attached, plan, rows, len(cohort), self._rows_per_step)
        secure = plan.privacy_mode == "secure-aggregation"
        update_D = add_noise(sum_D, plan, draws) if secure else privatise(sum_D, plan, draws)
        done = ProbedRound(
            plan=plan,
            round=round_,
            step=functools.partial(self._step_on_invented, attached, plan),
            margin=ROUNDING_MARGIN,
            eligible=subjects,
            rows=[LotRow(row.subject_id, row.subject) for row in rows],
            sum_D=sum_D,
            update_D=update_D,
            draws=draws,
            loudness=attached.loudness,
        )
        receipt = probe(done, self._marks).require_passed()
        if secure:
            return TrainedUpdate(pack_integers(to_integers(update_D, plan)), receipt)
        return TrainedUpdate(update_D.numpy().astype("<f4").tobytes(), receipt)

    def _load(self, plan: RoundPlan, basis: bytes, vector: bytes) -> _Attached:
        """The plan's adapter with the order's numbers in it."""
        attached = self._attach(plan, basis)
        try:
            vector_D = torch.frombuffer(bytearray(vector), dtype=torch.float32)
            attached.adapter.load_vector(vector_D)
        except (AdapterError, ValueError) as error:
            raise RefusalError(
                "payload-mismatch",
                "the adapter's numbers are not those of the plan",
                remedy=_DISAGREE,
            ) from error
        require_bounded(attached.adapter)
        return attached

    def _clipped_sum(
        self,
        attached: _Attached,
        plan: RoundPlan,
        rows: list[_Row],
        subjects: int,
        rows_per_step: int,
        *,
        vocabulary: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sum [D] of clipped gradients and norms [U]: the step, for the lot and for its probes."""
        return attached.engine.clipped_sum(
            self._steps(attached.adapter, rows, rows_per_step, vocabulary),
            subjects,
            plan.clipping_norm * (1 - ROUNDING_MARGIN),
        )

    def _step_on_invented(
        self,
        attached: _Attached,
        plan: RoundPlan,
        invented: Sequence[Invented],
        rows_per_step: int,
    ) -> tuple[Tensor, Tensor]:
        """The step on subjects that a probe makes up."""
        rows = [
            _Row(-1, number, *pair, share=subject.loudness / subject.rows)
            for number, subject in enumerate(invented)
            for pair in invent_rows(self._base, subject.seed, subject.rows)
        ]
        # Half of so small a step would be the vocabulary, which is frozen: a part of it serves.
        return self._clipped_sum(
            attached, plan, rows, len(invented), rows_per_step, vocabulary=INVENTED_VOCABULARY
        )

    def _rows(
        self, cohort: list[int], cap: int, round_: int, context_weight: float = 1.0
    ) -> list[_Row]:
        """Usable recordings of the cohort, at most `cap` a subject, subjects together."""
        recordings = self._store.training_recordings(cohort)
        groups = []
        for number, subject in enumerate(cohort):
            ready = [
                (states_SD, example)
                for recording in _pick(recordings.get(subject, []), cap, round_)
                if (example := self._example(recording, context_weight)) is not None
                and (states_SD := self._features.states(recording)) is not None
            ]
            ready.sort(key=lambda pair: len(pair[0]))
            groups.append([_Row(subject, number, *pair, share=1 / len(ready)) for pair in ready])
        # Subjects with windows of like length side by side make full steps; a subject's rows stay
        # next to each other, as the engine needs to clip it once.
        groups.sort(key=lambda group: [len(row.states_SD) for row in group])
        return [row for group in groups for row in group]

    def _example(self, recording: Recording, context_weight: float) -> Example | None:
        try:
            return make_example(
                self._base.tokenizer,
                recording.text,
                language=recording.language or DEFAULT_LANGUAGE,
                terms=recording.terms,
                other_weight=context_weight,
            )
        except TextError:
            return None

    def _steps(
        self, adapter: Adapter, rows: list[_Row], rows_per_step: int, vocabulary: int | None
    ) -> Iterator[tuple[_Loss, Tensor]]:
        """Batches of equal windows, as the engine takes them: (row losses, subject of each)."""
        start = 0
        while start < len(rows):
            length = len(rows[start].states_SD)
            end = start + 1
            while (
                end < len(rows)
                and end - start < rows_per_step
                and len(rows[end].states_SD) == length
                and (not self._one_subject_per_step or rows[end].subject == rows[start].subject)
            ):
                end += 1
            batch = rows[start:end]
            subjects_B = torch.tensor([row.subject for row in batch])
            yield functools.partial(self._losses, adapter, batch, vocabulary), subjects_B
            start = end

    def _losses(self, adapter: Adapter, batch: list[_Row], vocabulary: int | None) -> Tensor:
        states_BSD = torch.stack([row.states_SD for row in batch])
        examples = [row.example for row in batch]
        ids_BT, mask_BT = collate(examples, pad=self._base.tokenizer.end)
        model = adapter.peft_model.get_base_model()
        losses_B = row_losses(model, states_BSD, ids_BT, mask_BT, vocabulary)
        return losses_B * torch.tensor([row.share for row in batch])

    def _attach(self, plan: RoundPlan, basis: bytes) -> _Attached:
        if self._attached is not None and self._attached.plan_sha256 == plan.sha256:
            return self._attached
        if plan.base_sha256 != self._base.base_sha256:
            raise RefusalError(
                "base-checksum",
                f"the plan is for base {plan.base_sha256[:16]}, this site has "
                f"{self._base.base_sha256[:16]}",
                remedy="install the base that the coordinator uses",
            )
        spec = plan.adapter
        config = AdapterConfig(
            kind=spec.kind,
            rank=spec.rank,
            scaling=spec.scaling,
            target_modules=spec.target_modules,
            target_parameters=spec.target_parameters,
        )
        try:
            frozen = basis_from_bytes(basis) if spec.kind == "core" else None
            adapter = attach(self._base.model, config, frozen)
        except AdapterError as error:
            raise _mismatch(error.problem) from error
        expected = [(tensor.name, tensor.shape) for tensor in spec.tensors]
        if [(name, tuple(shape)) for name, shape in adapter.tensor_specs()] != expected:
            raise _mismatch("its tensors are not those that the plan lists")
        require_frozen_encoder(adapter)
        refuse_unsupported(self._base.model, adapter.layers)
        engine = PerSubjectEngine(adapter.layers, tensors=[name for name, _ in expected])
        self._attached = _Attached(plan.sha256, adapter, engine, Loudness())
        return self._attached


def require_frozen_encoder(adapter: Adapter) -> None:
    """Raise RefusalError ("adapter-in-encoder") where cached encoder states would be inexact."""
    if any(layer.name.startswith(ENCODER) for layer in adapter.layers):
        raise RefusalError(
            "adapter-in-encoder",
            "the plan adapts the encoder, whose states this site computes once and keeps",
            remedy="ask for a plan that adapts the decoder only",
        )


def _pick(recordings: list[Recording], cap: int, round_: int) -> list[Recording]:
    """At most `cap` of one subject's recordings, taking turns over the rounds.

    Which ones depends on the subject's own list and the public round number only, so one subject's
    presence changes nobody else's gradient.
    """
    if len(recordings) <= cap:
        return recordings
    start = round_ * cap % len(recordings)
    turned = recordings[start:] + recordings[:start]
    return turned[:cap]


def _mismatch(problem: str) -> RefusalError:
    return RefusalError(
        "adapter-mismatch", f"the plan's adapter does not fit: {problem}", remedy=_DISAGREE
    )
