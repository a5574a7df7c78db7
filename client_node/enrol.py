"""Enrolment: a site joins a federation with its invite, over TLS that trusts only its CA."""

from __future__ import annotations

import dataclasses
import hashlib
import ssl
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import httpx
import rfc8785

from client_node import clock
from client_node.errors import LinkError, SiteError
from client_node.home import SiteHome, SiteSettings, write_private
from client_node.invite import Invite, read_invite
from client_node.keys import create_keys
from client_node.policy import trust_coordinator
from privacy.signing import seal_statement

ENROL_PATH = "/v1/auricle/enrol"
HEALTH_PATH = "/health"
ENROLMENT_TYPE = "application/vnd.auricle.enrolment+json"
TIMEOUT_S = 15.0
_REMEDIES = {
    "invite-used": "ask the operator for a new invite: each works once",
    "invite-expired": "ask the operator for a new invite",
    "invite-unknown": "check that the invite is this coordinator's, or ask for a new one",
    "site-exists": "ask the operator to revoke the old site of this name first",
}


def check_coordinator(url: str, ca_pem: str, now: Callable[[], float] = time.time) -> None:
    """Ask the coordinator for its health over TLS, and for its time.

    Raises LinkError with the code "coordinator-unreachable" (nothing answers),
    "coordinator-untrusted" (something answers that the pinned CA does not vouch for), or
    "clock-differs" (node authentication would refuse this machine's clock).
    """
    with _client(url, ca_pem) as client:
        date = _ask(client, url, "GET", HEALTH_PATH, None).headers.get("date")
    ahead = 0.0 if date is None else clock.ahead_s(date, now())
    if not clock.agrees(ahead):
        raise LinkError(
            f"this clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the "
            "coordinator's, which node authentication does not accept",
            remedy="set the clock of this machine, or of the coordinator's, by NTP",
            code="clock-differs",
        )


@dataclasses.dataclass(frozen=True)
class Joined:
    """What an enrolment led to; `approved` is false while the coordinator's operator must act."""

    invite: Invite
    approved: bool


def join(home: SiteHome, invite_path: Path, now: datetime) -> Joined:
    """Enrol this site; pins the coordinator's key and CA, and lets the policy trust it.

    Nothing is pinned unless the coordinator accepts. Repeating it after a lost answer is safe, and
    tells whether the site has been approved meanwhile. Raises SiteError or LinkError.
    """
    settings = SiteSettings.load(home.settings)
    invite = read_invite(invite_path, now)
    if invite.site != settings.site:
        raise SiteError(
            f"the invite is for site {invite.site}; this one is {settings.site}",
            remedy="use the invite of this site, or name the site as the invite does",
            code="invite-other-site",
        )
    keys = create_keys(home)
    proof = {
        "token_sha256": hashlib.sha256(invite.token.encode()).hexdigest(),
        "site": settings.site,
        "node_public": keys.node_public_openssh,
    }
    statement = seal_statement(rfc8785.dumps(proof), ENROLMENT_TYPE, keys.identity)
    request = {
        "invite_token": invite.token,
        "site": settings.site,
        "site_public_pem": keys.identity.public.public_pem,
        "node_public_openssh": keys.node_public_openssh,
        "statement": statement.decode("ascii"),
    }
    with _client(invite.coordinator_url, invite.ca_pem) as client:
        response = _ask(client, invite.coordinator_url, "POST", ENROL_PATH, request)
    approved = _check_answer(response, invite)
    write_private(home.ca, invite.ca_pem.encode("ascii"))
    write_private(home.coordinator_key, invite.coordinator.public_pem.encode("ascii"))
    dataclasses.replace(settings, coordinator_url=invite.coordinator_url).save(home.settings)
    trust_coordinator(home.policy, invite.coordinator.key_id)
    return Joined(invite, approved)


def post_json(
    url: str, ca_pem: str, path: str, body: dict[str, str]
) -> tuple[bool, dict[str, object]]:
    """POST to the coordinator over TLS that trusts `ca_pem` alone: whether it agreed, and fields.

    An answer that is no JSON object is an empty one. Raises LinkError as `check_coordinator` does.
    """
    with _client(url, ca_pem) as client:
        response = _ask(client, url, "POST", path, body)
    try:
        answer = response.json()
    except ValueError:
        answer = None
    return response.is_success, answer if isinstance(answer, dict) else {}


def _client(url: str, ca_pem: str) -> httpx.Client:
    # Not the system's authorities: only the invite's CA may vouch for a coordinator.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_pem)
    return httpx.Client(base_url=url, verify=context, timeout=TIMEOUT_S)


def _ask(
    client: httpx.Client, url: str, method: str, path: str, body: dict[str, str] | None
) -> httpx.Response:
    try:
        return client.request(method, path, json=body)
    except httpx.TransportError as error:
        if _is_certificate_error(error):
            raise LinkError(
                f"whatever answers at {url} is not vouched for by the invite's CA",
                remedy="compare the invite's CA with the coordinator's tls/ca.pem; if they agree, "
                "something between may be intercepting TLS: ask your network administrator",
                code="coordinator-untrusted",
            ) from error
        raise LinkError(
            f"the coordinator at {url} cannot be reached ({type(error).__name__})",
            remedy="check that it runs, that its name resolves, and that a firewall lets this "
            "machine connect to that port (HTTPS_PROXY is honoured)",
            code="coordinator-unreachable",
        ) from error


def _is_certificate_error(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _check_answer(response: httpx.Response, invite: Invite) -> bool:
    """Whether the site is approved. Raises SiteError and LinkError where it was not enrolled."""
    try:
        answer = response.json()
        accepted = response.is_success and answer["approved"] in (True, False)
        pem = answer["coordinator_public_pem"] if accepted else None
        code = str(answer.get("code", "")) if not accepted else ""
    except (ValueError, KeyError, TypeError, AttributeError):
        accepted, pem, code = False, None, ""
    if not accepted:
        shown = code or f"HTTP {response.status_code}"
        raise SiteError(
            f"the coordinator did not accept this site: {shown}",
            remedy=_REMEDIES.get(code, "ask the operator, naming this code"),
            code="enrolment-refused",
        )
    if pem != invite.coordinator.public_pem:
        raise LinkError(
            "the coordinator answered with another key than its invite names",
            remedy="do not go on: ask the operator to compare key fingerprints by telephone",
            code="coordinator-untrusted",
        )
    return bool(answer["approved"])
