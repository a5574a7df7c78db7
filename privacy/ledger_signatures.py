"""Every signature of a long log checked, on all cores.

An Ed25519 verification takes some 0.1 ms, nearly all that an entry costs, and `cryptography` does
it without Python's lock. So threads check signatures a few hundred at a time while the caller
parses, hashes and links the entries in order.

The signed head fixes every entry by its hash, so that a log is whole even where only the head's
signature is checked. Each entry's own is checked nevertheless: it is what an entry shown alone,
with its proof, is worth.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from privacy.ledger_entry import HEAD_TYPE, is_signed
from privacy.signing import PublicIdentity

BATCH_LINES = 250
MAX_THREADS = 8


def with_signatures(
    lines: Iterable[bytes], key: PublicIdentity, threads: int | None = None
) -> Iterator[tuple[bytes, bool]]:
    """Each entry's envelope with whether its signature by `key` has been found good.

    False says only that the reader must check it: entries come so in a short log, and in a batch
    with a bad one, whose first is then named. Lines are read ahead, by a few batches, in the
    caller's thread. A line may end in a line feed; a signed head passes through.
    """
    source = iter(lines)
    count = threads or min(os.cpu_count() or 1, MAX_THREADS)
    first = list(itertools.islice(source, BATCH_LINES))
    if len(first) < BATCH_LINES or count == 1:
        yield from ((line, False) for line in itertools.chain(first, source))
        return
    waiting: deque[tuple[list[bytes], Future[bool]]] = deque()
    with ThreadPoolExecutor(count, thread_name_prefix="signatures") as pool:
        batch = first
        while batch or waiting:
            if batch:
                waiting.append((batch, pool.submit(_all_signed, batch, key)))
                batch = list(itertools.islice(source, BATCH_LINES))
            if waiting and (not batch or len(waiting) > 2 * count):
                done, good = waiting.popleft()
                signed = good.result()
                yield from ((line, signed) for line in done)


def _all_signed(lines: list[bytes], key: PublicIdentity) -> bool:
    head = HEAD_TYPE.encode()
    return all(head in line or is_signed(line.removesuffix(b"\n"), key) for line in lines)
