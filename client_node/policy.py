"""The site's policy: what it agrees to train, decided here and before any training.

`policy.toml` belongs to the site. A plan that it vetoes is never trained; the coordinator learns
one code, the site's ledger keeps all of them.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from client_node.errors import SiteError
from client_node.home import read_toml, write_private
from privacy.budget import NO_CAP, BudgetCaps
from privacy.plan import RoundPlan
from privacy.secure_aggregation.fixed_point import FixedPoint
from privacy.update_encoding import most_bytes

DEFAULT_DELTA = 1e-6
DEFAULT_PURPOSES: Mapping[str, float] = MappingProxyType({"transcription": 8.0})
OPTIONAL_CAPS = ("total_epsilon", "yearly_epsilon", "subject_epsilon")
PURPOSE = re.compile(r"[a-z0-9][a-z0-9-]*")
_TEMPLATE = """\
# What this site agrees to. A plan that breaks one of these rules is never trained here.
# The service reads this file when it starts.

# Key ids of the coordinators that may send plans (`auricle site join` adds the one of the invite).
coordinators = [{coordinators}]

# SHA-256 of the base models that may be trained on. Empty: any base that is installed here.
bases = [{bases}]

# Fewest sites in a plan, and fewest assumed honest where a plan states its second guarantee.
min_sites = 2
min_honest_sites = 1

# Least noise, as a multiple of the clipping norm.
min_noise_multiplier = 0.3

# Most recordings of one person in one round, and most bytes of one update.
max_utterances_per_subject = 20
max_upload_bytes = 16_777_216

# Adapters: kinds, largest rank, and patterns one of which every trained tensor must match.
adapter_kinds = ["core", "lora"]
adapter_max_rank = 128
adapter_tensors = ["*decoder*"]

[budget]
# Training without noise protects nobody: only for synthetic recordings.
allow_unprotected = {allow_unprotected}
# Every cap below is on the epsilon of one person's data, for this delta.
delta = {delta!r}
# The most epsilon over all purposes together: since this site began, and in one calendar year
# (UTC). A round that would pass either is refused. inf: the caps by purpose are enough.
total_epsilon = inf
yearly_epsilon = inf
# The most epsilon over all purposes since a person's first recording was imported. Who would pass
# it is no longer sampled; the site goes on with those who came later.
subject_epsilon = inf

# The purposes that this site trains for, and the most epsilon that each may ever spend. A plan for
# any other purpose is refused: a new name must not open a new budget.
[budget.purposes]
{purposes}

# Key ids of other sites by name, compared by telephone, for secure aggregation: it hides this
# site's update among theirs. Once one is listed, every other site of such a plan must be. While
# none is, a name keeps the key that it first had in a plan.
[peers]
"""


@dataclasses.dataclass(frozen=True)
class SitePolicy:
    """The rules of `policy.toml`; see the comments of the file that `default_policy` writes."""

    coordinators: tuple[str, ...]
    bases: tuple[str, ...]
    min_sites: int
    min_honest_sites: int
    min_noise_multiplier: float
    max_utterances_per_subject: int
    max_upload_bytes: int
    adapter_kinds: tuple[str, ...]
    adapter_max_rank: int
    adapter_tensors: tuple[str, ...]
    delta: float
    allow_unprotected: bool
    purposes: dict[str, float]
    peers: dict[str, str]
    sha256: str
    total_epsilon: float = NO_CAP
    yearly_epsilon: float = NO_CAP
    subject_epsilon: float = NO_CAP

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read and check `policy.toml`. Raises SiteError naming what is wrong."""
        fields: dict[str, Any] = read_toml(path)
        budget = fields.pop("budget", {})
        purposes = budget.pop("purposes", {}) if isinstance(budget, dict) else {}
        fields.setdefault("peers", {})
        merged = {**fields, **(budget if isinstance(budget, dict) else {}), "purposes": purposes}
        expected = {field.name: str(field.type) for field in dataclasses.fields(cls)}
        expected.pop("sha256")
        for name in OPTIONAL_CAPS:
            merged.setdefault(name, NO_CAP)
        if wrong := sorted(set(merged) ^ set(expected)):
            raise _policy_error(f"{path}: unknown or missing rule: {', '.join(wrong)}")
        for name, kind in expected.items():
            merged[name] = _typed(path, name, kind, merged[name])
        return cls(**merged, sha256=hashlib.sha256(path.read_bytes()).hexdigest())

    @property
    def caps(self) -> BudgetCaps:
        """The privacy caps, as the budget takes them."""
        return BudgetCaps(
            per_purpose=self.purposes,
            delta=self.delta,
            total=self.total_epsilon,
            yearly=self.yearly_epsilon,
            subject=self.subject_epsilon,
            allow_unprotected=self.allow_unprotected,
        )

    def cap(self, purpose: str) -> float:
        """Most ε that one subject may ever spend on `purpose`; 0 where it is not named."""
        return self.purposes.get(purpose, 0.0)

    def veto(self, plan: RoundPlan, *, site: str, coordinator: str) -> list[str]:
        """Codes of every rule that `plan`, signed by key id `coordinator`, breaks; [] agrees."""
        adapter = plan.adapter
        unprotected = plan.privacy_mode == "none"
        rules = (
            ("policy-site", site in plan.sites),
            ("policy-coordinator", coordinator in self.coordinators),
            ("policy-base", not self.bases or plan.base_sha256 in self.bases),
            ("policy-adapter", adapter.kind in self.adapter_kinds),
            ("policy-adapter", adapter.rank <= self.adapter_max_rank),
            ("policy-adapter", all(self._may_train(t.name) for t in adapter.tensors)),
            ("policy-purpose", self.cap(plan.purpose) > 0),
            ("policy-delta", plan.delta == self.delta),
            ("policy-unprotected", not unprotected or self.allow_unprotected),
            ("policy-noise", unprotected or plan.noise_multiplier >= self.min_noise_multiplier),
            ("policy-cohort", len(plan.sites) >= self.min_sites),
            ("policy-honest-sites", plan.honest_sites >= self.min_honest_sites),
            (
                "policy-utterances",
                plan.max_utterances_per_subject <= self.max_utterances_per_subject,
            ),
            ("policy-upload", upload_bytes(plan) <= self.max_upload_bytes),
            ("policy-peers", self._knows_peers(plan, site)),
        )
        return list(dict.fromkeys(code for code, holds in rules if not holds))

    def _knows_peers(self, plan: RoundPlan, site: str) -> bool:
        """Whether `[peers]`, where it lists any, lists every other site of a secure plan."""
        secure = plan.privacy_mode == "secure-aggregation"
        return not (secure and self.peers) or set(plan.sites) - {site} <= self.peers.keys()

    def _may_train(self, tensor: str) -> bool:
        return any(fnmatch.fnmatchcase(tensor, pattern) for pattern in self.adapter_tensors)


def upload_bytes(plan: RoundPlan) -> int:
    """Bytes of one update. Raises PlanError where no integer holds the plan's bounds."""
    if plan.privacy_mode == "secure-aggregation":
        return plan.adapter.size * FixedPoint.of(plan).word_bytes
    return most_bytes(plan.update_encoding, plan.adapter.size)


def default_policy(
    path: Path,
    *,
    coordinators: tuple[str, ...] = (),
    bases: tuple[str, ...] = (),
    purposes: Mapping[str, float] = DEFAULT_PURPOSES,
    delta: float = DEFAULT_DELTA,
    allow_unprotected: bool = False,
) -> None:
    """Write the commented policy file with safe defaults.

    `purposes` are the caps on ε by purpose, at `delta`. Raises SiteError for a name that is not
    lower-case words joined by hyphens.
    """
    if not all(PURPOSE.fullmatch(purpose) for purpose in purposes):
        raise _policy_error("a purpose is lower-case letters, digits and hyphens")
    text = _TEMPLATE.format(
        purposes="\n".join(f"{purpose} = {cap!r}" for purpose, cap in purposes.items()),
        delta=delta,
        coordinators=_quoted(coordinators),
        bases=_quoted(bases),
        allow_unprotected=str(allow_unprotected).lower(),
    )
    write_private(path, text.encode())


def trust_coordinator(path: Path, key_id: str) -> None:
    """Add a coordinator's key id to the policy, keeping every comment and other rule."""
    policy = SitePolicy.load(path)
    if key_id in policy.coordinators:
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    at = [index for index, line in enumerate(lines) if line.startswith("coordinators = ")]
    if len(at) != 1 or not lines[at[0]].rstrip().endswith("]"):
        raise _policy_error(f"{path}: `coordinators = [...]` must be on one line of its own")
    lines[at[0]] = f"coordinators = [{_quoted((*policy.coordinators, key_id))}]\n"
    write_private(path, "".join(lines).encode())
    SitePolicy.load(path)


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f'"{value}"' for value in values)


def _typed(path: Path, name: str, kind: str, value: Any) -> Any:
    checks: dict[str, bool] = {
        "tuple[str, ...]": isinstance(value, list) and all(isinstance(v, str) for v in value),
        "int": type(value) is int and value >= 0,
        "float": type(value) in (int, float) and value >= 0,
        "bool": type(value) is bool,
        "dict[str, str]": isinstance(value, dict)
        and all(isinstance(v, str) for v in value.values()),
        "dict[str, float]": isinstance(value, dict)
        and all(type(v) in (int, float) and v >= 0 for v in value.values()),
    }
    if not checks[kind]:
        raise _policy_error(f"{path}: rule {name} has a wrong value")
    if kind == "tuple[str, ...]":
        return tuple(value)
    return float(value) if kind == "float" else value


def _policy_error(problem: str) -> SiteError:
    return SiteError(problem, remedy="correct policy.toml", code="policy-invalid")
