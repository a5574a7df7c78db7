"""The other sites' keys: a name keeps the key that it first had here, or that the policy gives it.

Secure aggregation hides a site's update among others, so it is worth what those others are worth:
a coordinator that made them up would learn everything. The plan names each site's signing key;
this site holds the plan to what it knows itself. A key in `[peers]` of policy.toml, compared by
telephone, decides. A name that is not there is pinned when it is first seen in a plan that is
accepted, and a plan that gives it another key later is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy import Engine

from client_node.errors import RefusalError
from client_node.tables import PeerRow, open_schema
from privacy.plan import RoundPlan
from privacy.secure_aggregation.setting import site_identities
from privacy.signing import PublicIdentity
from privacy.store import reading, writing


class PeerBook:
    """Key ids of sites by name."""

    def __init__(
        self, engine: Engine, site: str, identity: PublicIdentity, listed: Mapping[str, str]
    ) -> None:
        """`site` and `identity` are this site's own; `listed` are the policy's key ids by name."""
        open_schema(engine)
        self._engine = engine
        self._listed = {**listed, site: identity.key_id}

    def require(self, plan: RoundPlan) -> None:
        """Refuse a plan that gives a known site another key.

        Raises RefusalError "peer-key-changed", and PlanError for a key that is none.
        """
        known = self._known()
        for site, identity in site_identities(plan).items():
            if known.get(site, identity.key_id) != identity.key_id:
                raise RefusalError(
                    "peer-key-changed",
                    f"the plan gives site {site} another key than this site knows it by",
                    remedy=f"ask {site} by telephone for its key id; if it has new keys, list that "
                    "id under [peers] in policy.toml",
                )

    def pin(self, plan: RoundPlan) -> None:
        """Remember the plan's sites that are not known yet. The caller has required the plan."""
        known = self._known()
        with writing(self._engine) as session:
            for site, identity in site_identities(plan).items():
                if site not in known:
                    session.add(PeerRow(site=site, key_id=identity.key_id))

    def _known(self) -> dict[str, str]:
        with reading(self._engine) as session:
            pinned = {row.site: row.key_id for row in session.query(PeerRow)}
        return pinned | self._listed
