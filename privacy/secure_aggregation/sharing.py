"""Shamir's secret sharing (1979, doi:10.1145/359168.359176) of 128-bit seeds, by pycryptodome.

The scheme is over GF(2^128) with coefficients from the operating system. Below the threshold,
shares tell nothing; a wrong share gives a wrong seed silently, so whoever combines them compares
the seed with what its owner published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from Crypto.Protocol.SecretSharing import Shamir

from privacy.secure_aggregation.errors import require


def split(seed: bytes, threshold: int, count: int) -> list[bytes]:
    """`count` shares of `seed` (16 bytes), any `threshold` of which give it back; 1-based order."""
    require(2 <= threshold <= count, "secure-roster", "fewer sites than the threshold")
    shares = dict(Shamir.split(threshold, count, seed, False))
    return [shares[number] for number in range(1, count + 1)]


def combine(
    shares: Mapping[int, bytes], threshold: int, is_right: Callable[[bytes], bool]
) -> bytes:
    """The seed that `is_right` knows, from `shares` by 1-based number.

    With more shares than the threshold, one wrong share among neighbours is passed over: each run
    of `threshold` shares in cyclic order is tried. Raises SecureAggregationError "secure-sum"
    where no run gives the seed.
    """
    numbers = sorted(shares)
    require(len(numbers) >= threshold, "secure-sum", "fewer shares than the threshold")
    runs = len(numbers) if len(numbers) > threshold else 1
    for start in range(runs):
        run = [numbers[(start + step) % len(numbers)] for step in range(threshold)]
        seed: bytes = Shamir.combine([(number, shares[number]) for number in run], False)
        if is_right(seed):
            return seed
    require(False, "secure-sum", "the shares do not give the seed that its site published")
    raise AssertionError  # unreachable: require(False) raises
