"""Errors of the command line itself; the rooms' own errors pass through unchanged."""

from __future__ import annotations

from privacy.errors import AuricleError


class CommandError(AuricleError):
    """A command was asked for something that it cannot do here."""

    code = "command-refused"
    exit_code = 40


class OfflineError(CommandError):
    """The coordinator's service on this machine does not answer."""

    code = "coordinator-not-running"
    exit_code = 42
