"""The coordinator's errors: each says what happened, why, and what to do next."""

from __future__ import annotations

from privacy.errors import AuricleError


class CoordinatorError(AuricleError):
    """The coordinator cannot start, or was asked for something it cannot do."""

    code = "coordinator-refused"
    exit_code = 10


class EnrolmentError(AuricleError):
    """An invite or an enrolment request is refused; the code says which check failed."""

    code = "enrolment-refused"
    exit_code = 11


class RequestError(AuricleError):
    """A job request is malformed or cannot be planned."""

    code = "request-invalid"
    exit_code = 12


class RoundError(AuricleError):
    """An event that a round cannot take in its present state."""

    code = "round-event-refused"
    exit_code = 13


class AdmissionError(AuricleError):
    """A site's update fails one of the admission checks; `code` names the check."""

    code = "update-refused"
    exit_code = 14


class LeaseError(CoordinatorError):
    """Another coordinator holds the database, or has taken it over."""

    code = "lease-lost"
