"""Fuzz target of the decoder: `python -m tests.fuzz_decoder [-max_total_time=60]`.

libFuzzer (atheris) writes files; each must be heard or refused with AudioError. Anything else,
a crash of FFmpeg included, is a finding, and the file that made it is kept in the working folder.
FFmpeg is not built with coverage, so nothing tells the fuzzer what is worth keeping: every file it
tries is one well-made recording with a few changes. It runs here without the fork and its limits,
so that the fuzzer sees the fault itself.
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
from collections.abc import Sequence

import atheris
import av

from model_core.errors import AudioError
from model_core.pcm import RAW_TELEPHONY, mono_pieces
from tests.client_node.sounds import HEARD, RAW

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


def damaged(seeds: Sequence[bytes], max_bytes: int, seed: int) -> bytes:
    """One of the seeds after one to eight of libFuzzer's changes."""
    chosen = random.Random(seed)
    data = chosen.choice(seeds)[:max_bytes]
    for _ in range(chosen.randint(1, 8)):
        data = atheris.Mutate(data, max_bytes)
    return data


def main() -> None:
    """Run the fuzzer until it is stopped or finds something."""
    av.logging.set_level(av.logging.PANIC)
    seeds = [b"\0" + make() for make in HEARD.values()]
    seeds += [bytes([KINDS.index(raw)]) + make() for raw, make in RAW.values()]
    longest = max(map(len, seeds))

    def mutate(_: bytes, max_bytes: int, seed: int) -> bytes:
        return damaged(seeds, max_bytes, seed)

    options = ["-len_control=0", f"-max_len={2 * longest}"]
    atheris.Setup([*sys.argv, *options], decode, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
