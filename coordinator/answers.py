"""What a site's signed answer amounts to: "ok", or a refusal's code."""

from __future__ import annotations

import re

from coordinator.admission import STATEMENT_LIMIT_BYTES
from coordinator.registry import SiteRecord
from coordinator.rounds import OK
from privacy.errors import AuricleError
from privacy.parcel import Answer, Parcel, ParcelKind
from privacy.signing import open_as

INVALID = "answer-invalid"
# Codes enter logs and the ledger: nothing else may come in under their name.
_CODE = re.compile(r"[a-z][a-z0-9-]{0,63}")


def answer_code(
    parcel: Parcel, site: SiteRecord, *, expected: ParcelKind, job: str, subject_sha256: str
) -> str:
    """ "ok" where `site` signed that it did what was asked, its code where it refused.

    A refusal need not name its subject: a site may refuse what it could not read. Anything else
    that is not the `expected` answer to this job and subject is "answer-invalid".
    """
    try:
        answer = open_as(Answer, parcel.statement, (site.identity,), STATEMENT_LIMIT_BYTES)
    except AuricleError:
        return INVALID
    if answer.site != site.name or not _CODE.fullmatch(answer.code):
        return INVALID
    if parcel.kind == "refused":
        return INVALID if answer.code == OK else answer.code
    bound = (answer.job, answer.subject_sha256) == (job, subject_sha256)
    return OK if parcel.kind == expected and bound and answer.code == OK else INVALID


def held_size(parcel: Parcel, site: SiteRecord) -> int:
    """Size of the head of our ledger that `site` signed that it holds; 0 where it signed none."""
    try:
        answer = open_as(Answer, parcel.statement, (site.identity,), STATEMENT_LIMIT_BYTES)
    except AuricleError:
        return 0
    return answer.peer_size if answer.site == site.name else 0
