"""A round plan for one institution that trains by itself, without sites or a coordinator."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from privacy.accountant import noise_multiplier_for
from privacy.per_subject import PeftLayer, PerSubjectEngine
from privacy.plan import AdapterSpec, OptimiserSpec, RoundPlan

SITE = "here"


def one_site_plan(
    layers: Sequence[PeftLayer],
    *,
    purpose: str,
    subjects: int,
    epsilon: float,
    delta: float,
    rounds: int,
    sampling_rate: float,
    clipping_norm: float,
) -> RoundPlan:
    """A plan whose noise is the least that keeps `rounds` rounds within (`epsilon`, `delta`).

    Args:
        layers: the adapted layers (`privacy.per_subject.layers_of`).
        purpose: what the learning is for; a budget is kept per purpose.
        subjects: N̄, a public number near the number of subjects; the divisor is q·N̄.
        clipping_norm: C, L2 bound of one subject's gradient.

    The base is named by the hash of the adapted layers' frozen weights. Raises PlanError or
    AccountingError where a number is out of range.
    """
    digest = hashlib.sha256()
    for layer in layers:
        frozen = [(n, p) for n, p in layer.module.named_parameters() if not p.requires_grad]
        for name, parameter in frozen:
            digest.update(f"{layer.name}.{name} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return RoundPlan(
        job=secrets.token_hex(16),
        purpose=purpose,
        base_sha256=digest.hexdigest(),
        adapter=AdapterSpec(
            kind="lora",
            rank=len(layers[0].down),
            scaling=layers[0].scaling,
            target_modules=tuple(layer.name for layer in layers),
            target_parameters=(),
            tensors=PerSubjectEngine(layers).tensors,
        ),
        sampling_rate=sampling_rate,
        noise_multiplier=noise_multiplier_for(epsilon, delta, sampling_rate, rounds),
        clipping_norm=clipping_norm,
        rounds=rounds,
        delta=delta,
        expected_subjects=subjects,
        max_utterances_per_subject=1,
        honest_sites=1,
        sites=(SITE,),
        quorum=1,
        deadline_s=86_400.0,
        optimiser=OptimiserSpec("adam", 0.0),
        issued_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
