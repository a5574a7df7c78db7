"""Fuzz target of the decoder: `python -m tests.fuzz_decoder [CORPUS] [-max_total_time=60]`.

libFuzzer (atheris) writes files; each must be heard or refused with AudioError. Anything else,
a crash of FFmpeg included, is a finding, and the file that made it is kept in the working folder.
Without a corpus it begins with one well-made file of each kind. It runs here without the fork and
its limits, so that the fuzzer sees the fault itself.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path

import atheris
import av

from model_core.errors import AudioError
from model_core.pcm import RAW_TELEPHONY, mono_pieces
from tests.client_node.sounds import HEARD

RATE_HZ = 16_000
MOST_SAMPLES = 60 * RATE_HZ
KINDS = (None, None, None, *RAW_TELEPHONY)


def decode(data: bytes) -> None:
    """Decode one file; its first byte chooses whether it is telephony without a container."""
    if not data:
        return
    raw = KINDS[data[0] % len(KINDS)]
    samples = 0
    with contextlib.suppress(AudioError):
        for piece in mono_pieces(io.BytesIO(data[1:]), RATE_HZ, name="a file", raw=raw):
            samples += len(piece)
            if samples > MOST_SAMPLES:
                return


def main() -> None:
    """Run the fuzzer until it is stopped or finds something."""
    av.logging.set_level(av.logging.PANIC)
    with tempfile.TemporaryDirectory() as folder:
        for number, make in enumerate(HEARD.values()):
            Path(folder, str(number)).write_bytes(b"\0" + make())
        atheris.Setup([*sys.argv, folder], decode)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
