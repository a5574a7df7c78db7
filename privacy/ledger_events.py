"""The two events from which ε is derived, as a site writes them and a verifier reads them.

`budget.reserved` says which mechanism may now run; it is written before any subject is drawn, and
whatever comes of the round it counts as spent (I1). `round.trained` says that it ran and what the
site claims to have spent. The ledger stores what ran, never ε alone: whoever audits derives ε from
the reservations. Neither event has the size of a cohort, which is private.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Self

from privacy.accountant import MechanismEvent
from privacy.plan import PLAN_FORMAT_V1, RoundPlan
from privacy.probes.receipt import require_probed

RESERVED = "budget.reserved"
TRAINED = "round.trained"
STOPPED = "round.stopped"
MECHANISM = "poisson-subsampled-gaussian"
UNIT = "subject"

_INFINITY = "Infinity"  # JSON has no infinite number, yet the ε of a round without noise is one


@dataclasses.dataclass(frozen=True)
class MechanismRun:
    """What runs in one round at one site: the fields of `budget.reserved`.

    The mechanism is Σ_{u in Poisson(q)} clip_C(g_u) + N(0, σ²C²I), `steps` times.

    Attributes:
        sampling_rate: q in (0, 1].
        noise_multiplier: σ ≥ 0; 0 protects nobody.
        clipping_norm: C > 0.
        delta: δ of the (ε, δ) that the plan asks for, in (0, 1).
    """

    site: str
    job: str
    round: int
    purpose: str
    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    delta: float
    plan_sha256: str
    steps: int = 1
    unit: str = UNIT
    adjacency: str = "add_or_remove_one"
    mechanism: str = MECHANISM

    @classmethod
    def from_plan(cls, plan: RoundPlan, round_: int, site: str) -> Self:
        """The run of `plan` in round `round_` at `site`."""
        return cls(
            site=site,
            job=plan.job,
            round=round_,
            purpose=plan.purpose,
            sampling_rate=plan.sampling_rate,
            noise_multiplier=plan.noise_multiplier,
            clipping_norm=plan.clipping_norm,
            delta=plan.delta,
            plan_sha256=plan.sha256,
            unit=plan.unit,
            adjacency=plan.adjacency,
        )

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], site: str) -> Self:
        """Read an event's fields; `site` is whose log it is, where the event names none.

        Fields of the event beyond these are left alone. Raises ValueError naming a field that is
        missing, of another type or out of range.
        """
        values: dict[str, Any] = {"site": site, **fields}
        run = cls(**{field.name: _typed(values, field) for field in dataclasses.fields(cls)})
        _check(0 < run.sampling_rate <= 1, "sampling_rate")
        _check(0 <= run.noise_multiplier < math.inf, "noise_multiplier")
        _check(0 < run.clipping_norm < math.inf, "clipping_norm")
        _check(0 < run.delta < 1, "delta")
        _check(run.steps >= 1, "steps")
        _check(run.unit == UNIT, "unit")
        _check(run.mechanism == MECHANISM, "mechanism")
        return run

    def fields(self) -> dict[str, Any]:
        """Fields for `Ledger.append(RESERVED, …)`."""
        return dataclasses.asdict(self)

    def event(self) -> MechanismEvent:
        """What the accountant composes. Raises AccountingError where it knows no such thing."""
        return MechanismEvent(self.sampling_rate, self.noise_multiplier, self.steps, self.adjacency)


@dataclasses.dataclass(frozen=True)
class TrainedRound:
    """A run and what the site claims for it: the fields of `round.trained`.

    Attributes:
        epsilon_loc: ε at the run's δ of every reservation of its site and purpose so far,
            composed, trusting nobody.
        epsilon_sec: the same where only the secure sum is seen and `honest_sites` sites add their
            noise (`privacy.accountant.epsilon_sec`).
        random_source: name of the source of the sampling and of the noise.
        accountant: versions of what computed ε.
        plan_format: version of the plan; from the second on it demands a probe receipt.
        probes: that receipt's fields (`privacy.probes`).
    """

    run: MechanismRun
    base_sha256: str
    epsilon_loc: float
    epsilon_sec: float
    honest_sites: int
    random_source: str
    code_version: str
    accountant: Mapping[str, str]
    plan_format: str
    probes: Mapping[str, Any]

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any], site: str) -> Self:
        """Read an event's fields, as `MechanismRun.from_fields` does. Raises ValueError."""
        run = MechanismRun.from_fields(fields, site)
        # Entries of the first version have neither of the two.
        values: dict[str, Any] = {"plan_format": PLAN_FORMAT_V1, "probes": {}, **fields}
        read = {
            field.name: _typed(values, field)
            for field in dataclasses.fields(cls)
            if field.name != "run"
        }
        trained = cls(run=run, **read)
        _check(trained.epsilon_loc >= 0, "epsilon_loc")
        _check(trained.epsilon_sec >= 0, "epsilon_sec")
        _check(trained.honest_sites >= 1, "honest_sites")
        if trained.plan_format != PLAN_FORMAT_V1:
            require_probed(trained.probes, run.noise_multiplier)
        return trained

    def fields(self) -> dict[str, Any]:
        """Fields for `Ledger.append(TRAINED, …)`; an infinite ε is written "Infinity"."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del own["run"]
        claims = {name: _INFINITY if own[name] == math.inf else own[name] for name in own}
        return self.run.fields() | claims


def _typed(values: Mapping[str, Any], field: dataclasses.Field[Any]) -> Any:
    if field.name not in values:
        raise ValueError(f"field {field.name} is missing")
    value = values[field.name]
    if field.type == "float":
        if value == _INFINITY:
            return math.inf
        # Canonical JSON writes 1.0 as 1, so that a whole float comes back as an int.
        _check(isinstance(value, int | float) and not isinstance(value, bool), field.name)
        try:
            return float(value)
        except OverflowError as error:
            raise ValueError(f"field {field.name} is beyond any float") from error
    kinds: dict[Any, type] = {
        "str": str,
        "int": int,
        "Mapping[str, str]": dict,
        "Mapping[str, Any]": dict,
    }
    _check(type(value) is kinds[field.type], field.name)
    return value


def _check(holds: bool, name: str) -> None:
    if not holds:
        raise ValueError(f"field {name} has a value that it cannot have")
