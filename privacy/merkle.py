"""Merkle trees of RFC 6962 / RFC 9162 section 2.1: roots, inclusion and consistency proofs.

Hashes are 32-byte SHA-256 digests. Leaves are hashed as SHA-256(0x00 || data), inner nodes as
SHA-256(0x01 || left || right), so that no leaf can pass for a node (RFC 9162 section 2.1.1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(data: bytes) -> bytes:
    """Hash of one leaf: SHA-256(0x00 || data)."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node: SHA-256(0x01 || left || right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


class MerkleTree:
    """Append-only tree that answers for every size it ever had.

    Keeps the hash of each complete, aligned subtree (64 bytes a leaf in all), so an append hashes
    two nodes on average and a root or proof of any size takes O(log² n) hashes, never a rehash.
    """

    def __init__(self) -> None:
        # _levels[k] holds the hashes of the complete subtrees of 2^k leaves, left to right.
        self._levels: list[list[bytes]] = [[]]

    @property
    def size(self) -> int:
        """Number of leaves."""
        return len(self._levels[0])

    def append(self, data: bytes) -> None:
        """Add one leaf holding `data`."""
        level = 0
        self._levels[0].append(leaf_hash(data))
        while len(self._levels[level]) % 2 == 0:
            left, right = self._levels[level][-2:]
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(node_hash(left, right))

    def truncate(self, size: int) -> None:
        """Take off every leaf from number `size` on. Raises IndexError when there are fewer."""
        self._checked_size(size)
        for level, nodes in enumerate(self._levels):
            del nodes[size >> level :]

    def leaf(self, index: int) -> bytes:
        """Leaf hash at `index`. Raises IndexError outside the tree."""
        if not 0 <= index < self.size:
            raise IndexError(f"leaf {index} is outside a tree of {self.size}")
        return self._levels[0][index]

    def root(self, size: int | None = None) -> bytes:
        """Merkle tree hash of the first `size` leaves (default: all).

        Raises IndexError when the tree never had that size.
        """
        size = self._checked_size(size)
        return self._subtree(0, size) if size else EMPTY_ROOT

    def inclusion_proof(self, index: int, size: int | None = None) -> list[bytes]:
        """PATH(index, D[size]) of RFC 9162 section 2.1.3.1, from the leaf upwards.

        Raises IndexError when the leaf is not in the tree of that size.
        """
        size = self._checked_size(size)
        if not 0 <= index < size:
            raise IndexError(f"leaf {index} is outside a tree of {size}")
        path: list[bytes] = []
        start, end = 0, size
        while end - start > 1:
            middle = start + _split(end - start)
            if index < middle:
                path.append(self._subtree(middle, end))
                end = middle
            else:
                path.append(self._subtree(start, middle))
                start = middle
        return path[::-1]

    def consistency_proof(self, old_size: int, new_size: int | None = None) -> list[bytes]:
        """PROOF(old_size, D[new_size]) of RFC 9162 section 2.1.4.1.

        Empty when either tree is empty or both are the same. Raises IndexError when the sizes are
        out of order or the tree never had them.
        """
        new_size = self._checked_size(new_size)
        if not 0 <= old_size <= new_size:
            raise IndexError(f"a tree of {new_size} does not extend one of {old_size}")
        if old_size in (0, new_size):
            return []
        proof: list[bytes] = []
        start, end, whole = 0, new_size, True
        while old_size != end:
            middle = start + _split(end - start)
            if old_size <= middle:
                proof.append(self._subtree(middle, end))
                end = middle
            else:
                proof.append(self._subtree(start, middle))
                start, whole = middle, False
        if not whole:
            proof.append(self._subtree(start, end))
        return proof[::-1]

    def _checked_size(self, size: int | None) -> int:
        if size is None:
            return self.size
        if not 0 <= size <= self.size:
            raise IndexError(f"the tree has {self.size} leaves, not {size}")
        return size

    def _subtree(self, start: int, end: int) -> bytes:
        """Hash of leaves [start, end), where start is aligned as RFC 6962 splits leave it."""
        width = end - start
        if width & (width - 1) == 0:
            level = width.bit_length() - 1
            return self._levels[level][start >> level]
        middle = start + _split(width)
        return node_hash(self._subtree(start, middle), self._subtree(middle, end))


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> bool:
    """Whether `proof` shows that leaf hash `leaf` is number `index` of the `size` under `root`.

    RFC 9162 section 2.1.3.2.
    """
    if not 0 <= index < size or not _all_hashes(leaf, root, *proof):
        return False
    node, last = index, size - 1
    computed = leaf
    for sibling in proof:
        if last == 0:
            return False
        if node & 1 or node == last:
            computed = node_hash(sibling, computed)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            computed = node_hash(computed, sibling)
        node, last = node >> 1, last >> 1
    return last == 0 and computed == root


def verify_consistency(
    old_size: int, old_root: bytes, new_size: int, new_root: bytes, proof: Sequence[bytes]
) -> bool:
    """Whether `proof` shows that the tree under `new_root` extends the one under `old_root`.

    RFC 9162 section 2.1.4.2; an empty old tree is extended by any tree, with an empty proof.
    """
    if not 0 <= old_size <= new_size or not _all_hashes(old_root, new_root, *proof):
        return False
    if old_size == new_size:
        return not proof and old_root == new_root
    if old_size == 0:
        return not proof and old_root == EMPTY_ROOT
    # A power of two is itself a node of the new tree, which the proof therefore leaves out.
    path = [old_root, *proof] if old_size & (old_size - 1) == 0 else list(proof)
    return bool(path) and _climb(path, old_size - 1, new_size - 1) == (old_root, new_root)


def _climb(path: list[bytes], node: int, last: int) -> tuple[bytes, bytes] | None:
    """Old and new root that a consistency path leads to, or None when its length is wrong."""
    while node & 1:
        node, last = node >> 1, last >> 1
    old = new = path[0]
    for sibling in path[1:]:
        if last == 0:
            return None
        if node & 1 or node == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        node, last = node >> 1, last >> 1
    return (old, new) if last == 0 else None


def _split(width: int) -> int:
    """Largest power of two smaller than `width`, which is at least 2."""
    return 1 << ((width - 1).bit_length() - 1)


def _all_hashes(*values: bytes) -> bool:
    return all(len(value) == HASH_BYTES for value in values)
