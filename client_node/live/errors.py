"""Errors of a live stream."""

from __future__ import annotations

from privacy.errors import AuricleError


class LiveError(AuricleError):
    """A live stream was refused or ended early.

    Codes: `stream-malformed` (the opening or a message is not understood), `stream-encoding`,
    `stream-rate`, `stream-samples` (samples that are no numbers, or half a sample at the end),
    `stream-chunk` (one message is too large), `stream-terms`, `stream-idle`, `stream-too-long`,
    `stream-busy`, `stream-order` (audio after the end), `stream-closed` (the service stops),
    `stream-unauthorised`; of the gRPC server `rpc-certificate`, `rpc-plaintext`, `rpc-port`.
    """

    code = "stream-malformed"
    exit_code = 24
