"""Checks of what others signed, the same at a site and at the coordinator."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

from privacy.errors import AuricleError
from privacy.secure_aggregation.agreement import KEY_BYTES
from privacy.secure_aggregation.errors import SecureAggregationError, require
from privacy.secure_aggregation.messages import (
    Confirmation,
    Roster,
    SiteKeys,
    SiteShares,
    SurvivorList,
    Unmasking,
)
from privacy.secure_aggregation.setting import Setting
from privacy.signing import open_as

MAX_ENVELOPE_BYTES = 256 * 1024
_HEX_KEY = re.compile(rf"[0-9a-f]{{{2 * KEY_BYTES}}}")

Signed = TypeVar("Signed", SiteKeys, SiteShares, Confirmation, Unmasking)


def open_signed(cls: type[Signed], envelope: bytes, setting: Setting, site: str) -> Signed:
    """The message of this session that `site` signed with the key that the plan names.

    Raises SecureAggregationError "secure-signature".
    """
    identity = setting.identities.get(site)
    require(identity is not None, "secure-signature", "a site is not in the plan")
    assert identity is not None
    try:
        message: Signed = open_as(cls, envelope, (identity,), MAX_ENVELOPE_BYTES)
    except AuricleError as error:
        raise SecureAggregationError(
            "a message of a site does not verify against the key that the plan names",
            remedy="treat whoever carried it as compromised",
            code="secure-signature",
        ) from error
    ours = setting.names(message) and message.site == site
    require(ours, "secure-signature", "a site's message is of another site, round or plan")
    return message


def open_keys(envelope: bytes, setting: Setting, site: str) -> SiteKeys:
    """A site's keys, well formed. Raises SecureAggregationError."""
    keys = open_signed(SiteKeys, envelope, setting, site)
    fields = (keys.share_public, keys.mask_public, keys.self_seed_sha256)
    well_formed = all(_HEX_KEY.fullmatch(field) for field in fields)
    require(well_formed, "secure-roster", "a site's keys are not 32 bytes each")
    return keys


def open_roster(roster: Roster, setting: Setting) -> dict[str, SiteKeys]:
    """Keys by site, every one signed by its site; at least a threshold of them.

    Who signed is tried against the plan's names in order, so a roster is in order of name.
    Raises SecureAggregationError "secure-roster" or "secure-signature".
    """
    require(setting.names(roster), "secure-roster", "the roster is of another round or plan")
    count = len(roster.keys)
    fits = setting.threshold <= count <= len(setting.identities)
    require(fits, "secure-roster", "the roster has too few sites, or too many")
    found: dict[str, SiteKeys] = {}
    waiting = list(roster.keys)
    for site in sorted(setting.identities):
        if waiting and (keys := _of_site(waiting[0], setting, site)) is not None:
            found[site] = keys
            waiting.pop(0)
    require(not waiting, "secure-signature", "an entry of the roster is signed by no site of it")
    return found


def _of_site(envelope: str, setting: Setting, site: str) -> SiteKeys | None:
    try:
        return open_keys(envelope.encode(), setting, site)
    except SecureAggregationError:
        return None


def require_survivors(
    listed: SurvivorList | Confirmation, setting: Setting, masked_among: Sequence[str]
) -> None:
    """Refuse a list that is not a partition of `masked_among` with a threshold of survivors.

    Raises SecureAggregationError "secure-survivors": a site claimed both dropped and alive, one
    of neither, names out of order, or a sum of too few.
    """
    survivors, dropped = listed.survivors, listed.dropped
    parts = sorted((*survivors, *dropped)) == sorted(masked_among)
    require(parts, "secure-survivors", "survivors and dropped sites are not a partition")
    ordered = list(survivors) == sorted(survivors) and list(dropped) == sorted(dropped)
    require(ordered, "secure-survivors", "survivors are not in order of name")
    enough = len(survivors) >= setting.threshold
    require(enough, "secure-survivors", "the sum would be of fewer sites than the threshold")
