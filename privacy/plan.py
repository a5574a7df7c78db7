"""The round plan: public constants of a job, fixed and signed before any data is seen.

A plan is the contract between coordinator and sites. It is serialised as RFC 8785 canonical JSON,
named by the SHA-256 of those bytes, and travels inside a signed statement (`privacy.signing`).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

import rfc8785

from privacy.errors import PlanError

PLAN_FORMAT_V1 = "auricle/plan/v1"
PLAN_FORMAT = "auricle/plan/v2"  # demands a probe receipt of every round
MIN_SAMPLING_RATE = 1e-4  # below it the accountant takes minutes, and no site has a lot
JOB_NAME = re.compile(r"[0-9a-f]{1,64}")
_LARGEST_INTEGER = 2**53 - 1  # RFC 8785
_SITE_KEY = re.compile(r"[0-9a-f]{64}")
AdapterKind = Literal["lora", "core"]
PrivacyMode = Literal["local-noise", "secure-aggregation", "none"]
Adjacency = Literal["add_or_remove_one", "replace_one"]
OptimiserName = Literal["adam", "sgd", "lamb"]
AggregationRule = Literal["mean", "median", "trimmed-mean", "krum"]
Schedule = Literal["constant", "linear"]
UpdateEncoding = Literal["float32", "bfloat16", "int8"]


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One trainable tensor of the adapter: its name and shape; the dtype is always float32."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class AdapterSpec:
    """What is trained: layers, rank, and the exact trainable tensors in packing order.

    `kind` is "lora" (both factors train) or "core" (an r x r matrix trains between two frozen
    factors, the basis, whose safetensors bytes hash to `basis_sha256`).
    """

    kind: AdapterKind
    rank: int
    scaling: float
    target_modules: tuple[str, ...]
    target_parameters: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    basis_sha256: str | None = None

    @property
    def size(self) -> int:
        """Number of trainable numbers, the dimension d of an update."""
        return sum(tensor.size for tensor in self.tensors)


@dataclasses.dataclass(frozen=True)
class OptimiserSpec:
    """The coordinator's optimiser over aggregated updates; post-processing, so free of ε.

    With schedule "linear" the learning rate of round t of T is `learning_rate`·(1 - (t - 1)/T).
    """

    name: OptimiserName
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.99
    eps: float = 1e-8
    schedule: Schedule = "linear"


@dataclasses.dataclass(frozen=True)
class AggregationSpec:
    """How the coordinator makes one update of the admitted ones; post-processing, so free of ε.

    "mean" is their sum. The others stand against `byzantine` hostile sites (f), give up that noises
    of honest sites add up (so that the plan's `honest_sites` is 1), and need each update in the
    clear. "median" takes no f.
    """

    rule: AggregationRule = "mean"
    byzantine: int = 0

    @property
    def least_updates(self) -> int:
        """Fewest updates for which the rule holds against `byzantine` hostile ones."""
        match self.rule:
            case "mean":
                return 1
            case "krum":
                return 2 * self.byzantine + 3
            case "median":
                return 3
            case "trimmed-mean":
                return 2 * self.byzantine + 1


@dataclasses.dataclass(frozen=True)
class RoundPlan:
    """Public constants of one job of `rounds` one-step rounds.

    The mechanism of a round at one site is g = Σ_{u in Poisson(q)} clip_C(g_u) + N(0, σ²C²I); the
    coordinator divides the sum over sites by the public constant `divisor`.

    Attributes:
        job: unique name of the job, lower-case hex.
        purpose: what the learning is for; budgets are kept per purpose.
        base_sha256: hash of the frozen base model that every party must hold.
        sampling_rate: q, probability that a subject is in a round's cohort.
        noise_multiplier: σ, noise standard deviation as a multiple of C.
        clipping_norm: C, L2 bound of one subject's gradient.
        rounds: T, number of rounds.
        delta: δ of the (ε, δ) guarantee.
        expected_subjects: public N̄, subjects per site assumed by the divisor.
        max_utterances_per_subject: cap on recordings of one subject used in one round.
        honest_sites: h, sites assumed honest when ε_sec is stated.
        sites: names of the sites asked to take part.
        quorum: fewest sites whose updates make a round.
        deadline_s: seconds a round may stay open.
        adjacency: which data sets are neighbours, and so what ε is a statement of: one subject
            more or less, or one replaced by another, which takes more noise at the same ε.
        context_weight: weight, in the loss of a recording whose term is known, of the tokens
            outside that term (whose own weight is 1), in [0, 1].
        privacy_mode: "local-noise" shows the coordinator each site's noisy sum;
            "secure-aggregation" only the sum over sites (`privacy.secure_aggregation`); "none" adds
            no noise.
        aggregation: how admitted updates become one.
        update_encoding: how a site writes the numbers of its noised update
            (`privacy.update_encoding`).
        site_keys: for secure aggregation, the raw Ed25519 public key of each of `sites`, in hex
            and in that order; empty otherwise.
    """

    job: str
    purpose: str
    base_sha256: str
    adapter: AdapterSpec
    sampling_rate: float
    noise_multiplier: float
    clipping_norm: float
    rounds: int
    delta: float
    expected_subjects: int
    max_utterances_per_subject: int
    honest_sites: int
    sites: tuple[str, ...]
    quorum: int
    deadline_s: float
    optimiser: OptimiserSpec
    issued_at: str
    context_weight: float = 1.0
    privacy_mode: PrivacyMode = "local-noise"
    site_keys: tuple[str, ...] = ()
    unit: Literal["subject"] = "subject"
    adjacency: Adjacency = "add_or_remove_one"
    aggregation: AggregationSpec = AggregationSpec()
    update_encoding: UpdateEncoding = "float32"
    format: str = PLAN_FORMAT

    def __post_init__(self) -> None:
        """Check every range. Raises PlanError naming the field."""
        _check(self.format in (PLAN_FORMAT_V1, PLAN_FORMAT), "format", f"is not {PLAN_FORMAT}")
        _check(JOB_NAME.fullmatch(self.job) is not None, "job", "must be 1 to 64 hex digits")
        _check(
            MIN_SAMPLING_RATE <= self.sampling_rate <= 1,
            "sampling_rate",
            f"must be in [{MIN_SAMPLING_RATE}, 1]",
        )
        _check(0 < self.clipping_norm < 1e6, "clipping_norm", "must be in (0, 1e6)")
        _check(1 <= self.rounds <= 100_000, "rounds", "must be in [1, 100000]")
        _check(0 < self.delta < 1e-2, "delta", "must be in (0, 0.01)")
        _check(self.expected_subjects >= 1, "expected_subjects", "must be at least 1")
        _check(self.max_utterances_per_subject >= 1, "max_utterances_per_subject", "must be ≥ 1")
        _check(len(set(self.sites)) == len(self.sites) > 0, "sites", "must be distinct, not empty")
        _check(1 <= self.quorum <= len(self.sites), "quorum", "must be between 1 and the sites")
        _check(1 <= self.honest_sites <= len(self.sites), "honest_sites", "must be 1..sites")
        _check(0 < self.deadline_s < 7 * 86400, "deadline_s", "must be under seven days")
        _check(0 <= self.context_weight <= 1, "context_weight", "must be in [0, 1]")
        _check(self.adjacency in get_args(Adjacency), "adjacency", "is not one that is known")
        _check(self.adapter.size > 0, "adapter", "has nothing to train")
        encoded = self.update_encoding != "float32"
        _check(self.update_encoding in get_args(UpdateEncoding), "update_encoding", "is not known")
        if self.privacy_mode == "none":
            _check(self.noise_multiplier == 0, "noise_multiplier", "must be 0 without privacy")
        else:
            _check(0 < self.noise_multiplier < 1e4, "noise_multiplier", "must be in (0, 10000)")
        if self.privacy_mode == "secure-aggregation":
            # Masks hide integers mod 2^w: those of `FixedPoint`, and no others.
            _check(not encoded, "update_encoding", "must be float32 under secure aggregation")
            self._check_secure()
        else:
            _check(self.site_keys == (), "site_keys", "is for secure aggregation only")
        self._check_aggregation()

    def _check_aggregation(self) -> None:
        rule, byzantine = self.aggregation.rule, self.aggregation.byzantine
        _check(rule in get_args(AggregationRule), "aggregation", "is not one that is known")
        if rule in ("mean", "median"):
            _check(byzantine == 0, "aggregation", f"{rule} takes no number of hostile sites")
        else:
            _check(byzantine >= 1, "aggregation", f"{rule} needs a number of hostile sites")
        if rule == "mean":
            return
        masked = self.privacy_mode == "secure-aggregation"
        _check(not masked, "aggregation", "must be the mean: secure aggregation shows only a sum")
        least = self.aggregation.least_updates
        _check(self.quorum >= least, "quorum", f"must be at least {least} for this aggregation")
        # What is released is no sum, so no noise but one site's own is certain to be in it.
        _check(self.honest_sites == 1, "honest_sites", "must be 1 unless updates are summed")

    def _check_secure(self) -> None:
        """Thresholds under which no active coordinator gets two sums of one round.

        The quorum m is the threshold of survivors. With h of every m honest, m - h sites of the n
        may help the coordinator; two lists of survivors, each signed by m sites of which an honest
        one signs once, need 2m ≤ n + (m - h). So m + h > n allows one list only (Bonawitz et al.
        2017, section 6.2, t > (n + colluding) / 2), and any sum has h honest sites' noise.
        """
        _check(2 <= self.honest_sites <= self.quorum, "honest_sites", "must be 2..quorum")
        more = self.quorum + self.honest_sites > len(self.sites)
        _check(more, "quorum", "and honest_sites together must be more than the sites")
        _check(len(self.site_keys) == len(self.sites), "site_keys", "must be one for each site")
        _check(len(set(self.site_keys)) == len(self.site_keys), "site_keys", "must be distinct")
        well_formed = all(_SITE_KEY.fullmatch(key) for key in self.site_keys)
        _check(well_formed, "site_keys", "must be 64 hex digits each")

    @property
    def divisor(self) -> float:
        """Public divisor n·q·N̄ of the summed updates, never the realised cohort size."""
        return len(self.sites) * self.sampling_rate * self.expected_subjects

    def to_json(self) -> bytes:
        """RFC 8785 canonical JSON; what is newer than the format is left out at its default."""
        fields = dataclasses.asdict(self)
        if self.aggregation == AggregationSpec():
            del fields["aggregation"]
        if self.update_encoding == "float32":
            del fields["update_encoding"]
        return rfc8785.dumps(fields)

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of `to_json()`: the plan's name."""
        return hashlib.sha256(self.to_json()).hexdigest()

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and check a plan. Raises PlanError on anything unexpected."""
        try:
            fields = json.loads(data)
            adapter = dict(fields.pop("adapter"))
            adapter["tensors"] = tuple(
                TensorSpec(t["name"], tuple(int(n) for n in t["shape"])) for t in adapter["tensors"]
            )
            # JSON writes a whole float as an integer, and RFC 8785 takes none above 2**53.
            adapter["scaling"] = float(adapter["scaling"])
            for key in ("target_modules", "target_parameters"):
                adapter[key] = tuple(adapter[key])
            fields["adapter"] = AdapterSpec(**adapter)
            fields["optimiser"] = OptimiserSpec(**fields["optimiser"])
            fields["aggregation"] = AggregationSpec(**fields.get("aggregation", {}))
            for key in ("sites", "site_keys"):
                fields[key] = tuple(fields.get(key, ()))
            plan = cls(**fields)
            for field, kind in get_type_hints(cls).items():
                _check(_is(getattr(plan, field), kind), field, "has a value of another kind")
            return plan
        except PlanError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise PlanError(
                f"the plan cannot be read: {type(error).__name__}",
                remedy="ask the coordinator's operator which version issued it",
            ) from error


def _check(holds: bool, field: str, what: str) -> None:
    if not holds:
        raise PlanError(
            f"plan field {field} {what}",
            remedy="correct the plan and issue it again",
        )


def _is(value: Any, kind: Any) -> bool:
    """Whether `value` is of the annotated type `kind`; True is no number, and no word is free.

    A plan comes from another party, and what it says is written into the site's own ledger: a
    value that the ledger's verifier refuses would spoil that ledger for good.
    """
    parts = get_args(kind)
    if dataclasses.is_dataclass(kind):
        return all(_is(getattr(value, name), of) for name, of in get_type_hints(kind).items())
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in parts
    if get_origin(kind) is tuple:
        return all(_is(part, parts[0]) for part in value)
    if parts:
        return any(_is(value, part) for part in parts)
    if type(value) is int:
        return kind in (int, float) and abs(value) <= _LARGEST_INTEGER
    return type(value) is kind and (kind is not float or math.isfinite(value))


def as_fields(value: Any) -> dict[str, Any]:
    """A dataclass as a plain dictionary, ready for canonical JSON."""
    return dataclasses.asdict(value)
