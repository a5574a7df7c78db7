"""From a job request to a round plan: the noise is calibrated here, once, before any data."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

from coordinator.errors import RequestError
from coordinator.model_artifacts import JobArtifacts
from coordinator.request import JobRequest
from privacy.accountant import MechanismEvent, epsilon, epsilon_sec, noise_multiplier_for
from privacy.plan import RoundPlan
from privacy.secure_aggregation.setting import Setting

_NO_KEYS: Mapping[str, str] = MappingProxyType({})


def make_plan(
    request: JobRequest,
    artifacts: JobArtifacts,
    active_sites: Collection[str],
    *,
    job: str,
    issued_at_s: float,
    site_keys: Mapping[str, str] = _NO_KEYS,
) -> RoundPlan:
    """The plan that answers `request`; `site_keys` are raw public keys (hex) by site.

    Raises RequestError where a named site is not active, PlanError where a range is broken.
    """
    sites = tuple(sorted(request.sites or active_sites))
    if unknown := sorted(set(sites) - set(active_sites)):
        raise RequestError(
            f"not enrolled, revoked or quarantined: {', '.join(unknown)}",
            remedy="list the active sites and name only those",
            code="site-inactive",
        )
    if not sites:
        raise RequestError(
            "no site is enrolled",
            remedy="make an invite for each site and let it join first",
            code="no-sites",
        )
    secure = request.privacy_mode == "secure-aggregation"
    quorum = request.quorum or len(sites)
    honest_sites = max(1, len(sites) - 1)
    if secure:
        honest_sites = min(max(2, honest_sites), quorum)
    elif request.aggregation.rule != "mean":
        honest_sites = 1
    plan = RoundPlan(
        job=job,
        purpose=request.purpose,
        base_sha256=artifacts.base_sha256,
        adapter=artifacts.adapter,
        sampling_rate=request.sampling_rate,
        noise_multiplier=_noise(request),
        clipping_norm=request.clipping_norm,
        rounds=request.rounds,
        delta=request.delta,
        expected_subjects=request.expected_subjects,
        max_utterances_per_subject=request.max_utterances_per_subject,
        honest_sites=request.honest_sites or honest_sites,
        sites=sites,
        quorum=quorum,
        deadline_s=request.deadline_s,
        optimiser=request.optimiser.spec(),
        issued_at=datetime.fromtimestamp(issued_at_s, UTC).isoformat(timespec="seconds"),
        context_weight=request.context_weight,
        privacy_mode=request.privacy_mode,
        adjacency=request.adjacency,
        aggregation=request.aggregation.spec(),
        update_encoding=request.update_encoding,
        site_keys=tuple(site_keys[site] for site in sites) if secure else (),
    )
    if secure:
        Setting.of(plan, 1)  # the keys are keys, and integers hold the plan's bounds
    return plan


@functools.lru_cache(maxsize=256)
def guarantees(plan: RoundPlan, rounds: int) -> tuple[float, float]:
    """(ε_loc, ε_sec) at the plan's δ after `rounds` rounds; infinite without noise.

    ε_sec holds where sites' updates are summed under secure aggregation with the plan's h.
    """
    if plan.privacy_mode == "none":
        return math.inf, math.inf
    if rounds == 0:
        return 0.0, 0.0
    events = (
        MechanismEvent(
            sampling_rate=plan.sampling_rate,
            noise_multiplier=plan.noise_multiplier,
            count=rounds,
            adjacency=plan.adjacency,
        ),
    )
    return epsilon(events, plan.delta), epsilon_sec(events, plan.delta, plan.honest_sites)


def mechanism_fields(plan: RoundPlan) -> dict[str, Any]:
    """What one round ran, for the ledger: ε is derived from these fields, never stored."""
    return {
        "purpose": plan.purpose,
        "unit": plan.unit,
        "adjacency": plan.adjacency,
        "mechanism": "poisson-subsampled-gaussian",
        "sampling_rate": plan.sampling_rate,
        "noise_multiplier": plan.noise_multiplier,
        "clipping_norm": plan.clipping_norm,
        "delta": plan.delta,
        "steps": 1,
        "honest_sites": plan.honest_sites,
        "privacy_mode": plan.privacy_mode,
        "aggregation": plan.aggregation.rule,
        "update_encoding": plan.update_encoding,
        "plan_sha256": plan.sha256,
        "base_sha256": plan.base_sha256,
    }


def _noise(request: JobRequest) -> float:
    if request.privacy_mode == "none":
        return 0.0
    if request.noise_multiplier is not None:
        return request.noise_multiplier
    assert request.epsilon is not None  # checked by JobRequest
    return noise_multiplier_for(
        request.epsilon, request.delta, request.sampling_rate, request.rounds, request.adjacency
    )
