"""Job requests: what an operator asks for, checked, before a plan is made of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from coordinator.errors import RequestError
from privacy.plan import (
    AdapterKind,
    Adjacency,
    AggregationRule,
    AggregationSpec,
    OptimiserName,
    OptimiserSpec,
    PrivacyMode,
    Schedule,
    UpdateEncoding,
)

_STRICT = ConfigDict(extra="forbid", strict=False)


@checked(frozen=True, config=_STRICT)
class AdapterRequest:
    """The adapter to train; names as in the plan's AdapterSpec.

    `target_modules` and `target_parameters` are regular expressions or names as peft takes them.
    `basis` is a safetensors file of frozen factors for kind "core", as `auricle coordinator basis`
    writes it; without it they are the singular vectors of the weights.
    """

    kind: AdapterKind = "core"
    rank: int = 16
    scaling: float = 1.0
    target_modules: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] = ()
    basis: Path | None = None


@checked(frozen=True, config=_STRICT)
class OptimiserRequest:
    """The server's optimiser; fields as in the plan's OptimiserSpec."""

    name: OptimiserName = "adam"
    learning_rate: float = 1e-2
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    schedule: Schedule = "linear"

    def spec(self) -> OptimiserSpec:
        """The same as the plan carries it."""
        return OptimiserSpec(**dataclasses.asdict(self))


@checked(frozen=True, config=_STRICT)
class AggregationRequest:
    """How updates become one; fields as in the plan's AggregationSpec."""

    rule: AggregationRule = "mean"
    byzantine: int = 0

    def spec(self) -> AggregationSpec:
        """The same as the plan carries it."""
        return AggregationSpec(self.rule, self.byzantine)


@checked(frozen=True, config=_STRICT)
class JobRequest:
    """One federated job.

    Attributes:
        purpose: what the learning is for; sites keep a budget per purpose.
        base_folder: folder of the prepared base model on the coordinator's machine.
        rounds: T.
        sampling_rate: q.
        clipping_norm: C.
        delta: δ.
        expected_subjects: public N̄, subjects assumed per site.
        epsilon: target ε_loc over all rounds; give this or `noise_multiplier`.
        noise_multiplier: σ.
        adjacency: which data sets are neighbours; as in the plan.
        privacy_mode: "secure-aggregation" shows the coordinator sums over sites only; "none" trains
            without noise, for comparisons on synthetic data only.
        sites: names, or empty for every active site.
        quorum: fewest updates that make a round; None asks for all sites.
        honest_sites: h for ε_sec; None assumes all sites but one. Under secure aggregation it is
            of every quorum of sites, and together they must be more than the sites. It is 1 where
            `aggregation` is not the mean.
        update_encoding: how sites write their noised updates; not to be chosen under secure
            aggregation, which has an integer encoding of its own.
        deadline_s: seconds that a round may stay open.
        context_weight: weight of the tokens outside a recording's term, in [0, 1].
        hold: keep the release back at the end until the operator publishes it.
    """

    purpose: str
    base_folder: Path
    rounds: int
    sampling_rate: float
    clipping_norm: float
    delta: float
    expected_subjects: int
    epsilon: float | None = None
    noise_multiplier: float | None = None
    privacy_mode: PrivacyMode = "local-noise"
    adjacency: Adjacency = "add_or_remove_one"
    max_utterances_per_subject: int = 4
    sites: tuple[str, ...] = ()
    quorum: int | None = None
    honest_sites: int | None = None
    update_encoding: UpdateEncoding = "float32"
    deadline_s: float = 600.0
    context_weight: float = 1.0
    hold: bool = False
    adapter: AdapterRequest = dataclasses.field(default_factory=AdapterRequest)
    optimiser: OptimiserRequest = dataclasses.field(default_factory=OptimiserRequest)
    aggregation: AggregationRequest = dataclasses.field(default_factory=AggregationRequest)

    def __post_init__(self) -> None:
        """Check what ranges alone cannot say. Raises RequestError."""
        given = (self.epsilon is not None) + (self.noise_multiplier is not None)
        if given != (0 if self.privacy_mode == "none" else 1):
            raise RequestError(
                "a private job needs either a target epsilon or a noise multiplier, "
                "a job without privacy neither",
                remedy="give exactly one of epsilon and noise_multiplier",
            )


_REQUEST: TypeAdapter[JobRequest] = TypeAdapter(JobRequest)


def parse_request(fields: dict[str, Any]) -> JobRequest:
    """A request from JSON fields. Raises RequestError naming the first fault."""
    try:
        return _REQUEST.validate_python(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "request"
        raise RequestError(
            f"job request: {where}: {first['msg']}",
            remedy="correct the field; `auricle round start --help` lists them all",
        ) from error


def request_json(request: JobRequest) -> str:
    """JSON that `parse_stored` reads back."""
    return _REQUEST.dump_json(request).decode()


def parse_stored(text: str) -> JobRequest:
    """The request of a stored job."""
    return _REQUEST.validate_json(text)
