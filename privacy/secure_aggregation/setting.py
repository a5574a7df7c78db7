"""What every party of one secure sum knows beforehand, all of it from the signed plan."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from typing import Self

import rfc8785

from privacy.errors import PlanError
from privacy.plan import RoundPlan
from privacy.secure_aggregation.fixed_point import FixedPoint
from privacy.signing import PublicIdentity


@dataclasses.dataclass(frozen=True)
class Setting:
    """One round's secure sum.

    Attributes:
        identities: enrolled signing key of each site that the plan names.
        threshold: fewest sites that can unmask, and whose updates make a sum: the plan's quorum.
        size: D, numbers of an update.
        fixed_point: how updates are written as integers.
    """

    job: str
    round: int
    plan_sha256: str
    identities: Mapping[str, PublicIdentity]
    threshold: int
    size: int
    fixed_point: FixedPoint

    @classmethod
    def of(cls, plan: RoundPlan, round_: int) -> Self:
        """The setting of round `round_` of `plan`.

        Raises PlanError for a plan that asks for no secure aggregation.
        """
        if plan.privacy_mode != "secure-aggregation":
            raise PlanError(
                "the plan asks for no secure aggregation",
                remedy="ask for a job with privacy_mode secure-aggregation",
            )
        return cls(
            job=plan.job,
            round=round_,
            plan_sha256=plan.sha256,
            identities=site_identities(plan),
            threshold=plan.quorum,
            size=plan.adapter.size,
            fixed_point=FixedPoint.of(plan),
        )

    @functools.cached_property
    def session(self) -> bytes:
        """Hash that names the round: 32 bytes that salt every key derived in it."""
        fields: dict[str, str | int] = {
            "job": self.job,
            "round": self.round,
            "plan_sha256": self.plan_sha256,
        }
        named = rfc8785.dumps({"format": "auricle/secure-session/v1", **fields})
        return hashlib.sha256(named).digest()

    def names(self, message: object) -> bool:
        """Whether a message is of this job, round and plan."""
        fields = ("job", "round", "plan_sha256")
        return all(getattr(message, name) == getattr(self, name) for name in fields)


def site_identities(plan: RoundPlan) -> dict[str, PublicIdentity]:
    """The signing key that the plan names for each site.

    Raises PlanError where one is not an Ed25519 public key.
    """
    return {site: _identity(key) for site, key in zip(plan.sites, plan.site_keys, strict=True)}


def _identity(key: str) -> PublicIdentity:
    try:
        return PublicIdentity.from_raw(bytes.fromhex(key))
    except ValueError as error:
        raise PlanError(
            "the plan names a site key that is none",
            remedy="correct the plan and issue it again",
        ) from error
