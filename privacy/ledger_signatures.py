"""Every signature of a long log checked, on all cores.

An Ed25519 verification takes some 0.1 ms and holds Python's lock, so that a hundred thousand take
their time on one core, whatever is done beside them. They do not depend on each other: processes
check them a thousand at a time while the caller hashes and links the entries in order.

The signed head fixes every entry by its hash, so that a log is whole even if only the head's
signature is checked; each entry's own is checked nevertheless, since it is what an entry shown
alone is worth.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor

from privacy.ledger_entry import HEAD_TYPE, is_signed
from privacy.signing import PublicIdentity

BATCH_LINES = 1000
_MAX_PROCESSES = 8


def with_signatures(
    lines: Iterator[bytes], key: PublicIdentity, processes: int | None = None
) -> Iterator[tuple[bytes, bool]]:
    """Each line of an export with whether its entry's signature has been found good.

    False says only that the reader must check it: lines come so in a short log, and in a batch with
    a bad one, whose first is then named. Lines are read ahead, by a few batches.

    Args:
        lines: entries as JSON lines, in any number; the signed head passes through.
        key: whose signatures they must be.
        processes: how many to use; None takes the cores, at most eight.
    """
    first = list(itertools.islice(lines, BATCH_LINES))
    if len(first) < BATCH_LINES:
        yield from ((line, False) for line in first)
        return
    count = processes or min(os.cpu_count() or 1, _MAX_PROCESSES)
    # Not forked: a fork of a process with threads may wait for a lock for ever.
    spawn = multiprocessing.get_context("spawn")
    waiting: deque[tuple[list[bytes], Future[bool]]] = deque()
    with ProcessPoolExecutor(count, mp_context=spawn) as pool:
        batch = first
        while batch or waiting:
            if batch:
                waiting.append((batch, pool.submit(_all_signed, batch, key.public_pem)))
                batch = list(itertools.islice(lines, BATCH_LINES))
            if waiting and (not batch or len(waiting) > 2 * count):
                done, good = waiting.popleft()
                signed = good.result()
                yield from ((line, signed) for line in done)


def _all_signed(lines: list[bytes], public_pem: str) -> bool:
    key = PublicIdentity.from_pem(public_pem)
    head = HEAD_TYPE.encode()
    return all(head in line or is_signed(line.removesuffix(b"\n"), key) for line in lines)
