"""The Merkle tree against the Certificate Transparency vectors and RFC 9162's definitions.

Vectors: transparency-dev/merkle `proof/verify_test.go` (the CT reference data), whose leaves and
roots every CT implementation shares; structure: the worked example of RFC 9162 section 2.1.5.
"""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privacy.merkle import (
    EMPTY_ROOT,
    MerkleTree,
    leaf_hash,
    node_hash,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [
    bytes.fromhex(text)
    for text in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = [
    bytes.fromhex(text)
    for text in (
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    )
]
INCLUSION = {  # (index, size) -> proof
    (0, 1): [],
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 3): ["fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"],
    (1, 5): [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
}
CONSISTENCY = {  # (old size, new size) -> proof
    (1, 1): [],
    (1, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
    (2, 5): [
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    ],
    (6, 7): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
OTHER_HASH = hashlib.sha256(b"some other tree").digest()


def tree_of(leaves: list[bytes]) -> MerkleTree:
    tree = MerkleTree()
    for leaf in leaves:
        tree.append(leaf)
    return tree


def definition(leaves: list[bytes]) -> bytes:
    """MTH(D[n]) written as RFC 9162 section 2.1.1 writes it: slow, and independent of ours."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    halves = definition(leaves[:split]) + definition(leaves[split:])
    return hashlib.sha256(b"\x01" + halves).digest()


@pytest.mark.parametrize("size", range(9))
def test_roots_are_the_reference_roots(size: int) -> None:
    assert tree_of(LEAVES[:size]).root() == ROOTS[size]
    assert tree_of(LEAVES).root(size) == ROOTS[size]


@pytest.mark.parametrize(("where", "proof"), INCLUSION.items(), ids=str)
def test_inclusion_proofs_are_the_reference_proofs(
    where: tuple[int, int], proof: list[str]
) -> None:
    index, size = where
    built = tree_of(LEAVES).inclusion_proof(index, size)
    assert [step.hex() for step in built] == proof
    assert verify_inclusion(leaf_hash(LEAVES[index]), index, size, built, ROOTS[size])


@pytest.mark.parametrize(("sizes", "proof"), CONSISTENCY.items(), ids=str)
def test_consistency_proofs_are_the_reference_proofs(
    sizes: tuple[int, int], proof: list[str]
) -> None:
    old, new = sizes
    built = tree_of(LEAVES).consistency_proof(old, new)
    assert [step.hex() for step in built] == proof
    assert verify_consistency(old, ROOTS[old], new, ROOTS[new], built)


def test_proofs_have_the_shape_of_the_rfc_9162_example() -> None:
    """Seven leaves; node names as in the figure of section 2.1.5."""
    tree = tree_of(LEAVES[:7])
    a, b, c, d, e, f, j = (leaf_hash(leaf) for leaf in LEAVES[:7])
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)
    assert tree.inclusion_proof(0) == [b, h, l]
    assert tree.inclusion_proof(3) == [c, g, l]
    assert tree.inclusion_proof(4) == [f, j, k]
    assert tree.inclusion_proof(6) == [i, k]
    assert tree.consistency_proof(3) == [c, d, g, l]
    assert tree.consistency_proof(4) == [l]
    assert tree.consistency_proof(6) == [i, j, k]


@given(st.lists(st.binary(max_size=8), max_size=70))
def test_incremental_root_equals_the_definition(leaves: list[bytes]) -> None:
    assert tree_of(leaves).root() == definition(leaves)


@given(st.lists(st.binary(max_size=8), max_size=70), st.binary(max_size=8), st.data())
def test_a_truncated_tree_is_the_tree_that_it_was(
    leaves: list[bytes], more: bytes, data: st.DataObject
) -> None:
    tree, size = tree_of(leaves), data.draw(st.integers(0, len(leaves)))
    tree.truncate(size)
    assert (tree.size, tree.root()) == (size, definition(leaves[:size]))
    tree.append(more)
    assert tree.root() == definition([*leaves[:size], more])
    with pytest.raises(IndexError):
        tree.truncate(size + 2)


@given(st.integers(1, 130), st.data())
def test_every_leaf_proves_and_only_in_its_own_place(size: int, data: st.DataObject) -> None:
    tree = tree_of([bytes([n]) for n in range(size)])
    index = data.draw(st.integers(0, size - 1))
    proof, root = tree.inclusion_proof(index, size), tree.root(size)
    assert verify_inclusion(tree.leaf(index), index, size, proof, root)
    elsewhere = data.draw(st.integers(-1, size + 1).filter(lambda n: n != index))
    assert not verify_inclusion(tree.leaf(index), elsewhere, size, proof, root)


@given(st.integers(1, 130), st.data())
def test_every_growth_proves_and_only_between_its_own_sizes(new: int, data: st.DataObject) -> None:
    tree = tree_of([bytes([n]) for n in range(new)])
    old = data.draw(st.integers(0, new))
    proof = tree.consistency_proof(old, new)
    assert verify_consistency(old, tree.root(old), new, tree.root(new), proof)
    assert not verify_consistency(old, OTHER_HASH, new, tree.root(new), proof)
    if 0 < old < new:
        assert not verify_consistency(old, tree.root(old), new, OTHER_HASH, proof)
        assert not verify_consistency(new, tree.root(new), old, tree.root(old), proof)


def broken(proof: list[bytes], root: bytes) -> list[list[bytes]]:
    """Every defect that the CT reference suite plants in a proof."""
    flipped = [
        [*proof[:n], bytes([step[0] ^ 8]) + step[1:], *proof[n + 1 :]]
        for n, step in enumerate(proof)
    ]
    padded = [[*proof, b""], [*proof, root], [b"", *proof], [root, *proof]]
    return [*flipped, *padded, *([proof[:-1], proof[1:]] if proof else [])]


@pytest.mark.parametrize("where", INCLUSION, ids=str)
def test_a_damaged_inclusion_proof_is_refused(where: tuple[int, int]) -> None:
    index, size = where
    leaf, proof = leaf_hash(LEAVES[index]), tree_of(LEAVES).inclusion_proof(index, size)
    for damaged in broken(proof, ROOTS[size]):
        assert not verify_inclusion(leaf, index, size, damaged, ROOTS[size])
    for other_root in (EMPTY_ROOT, OTHER_HASH, b""):
        assert not verify_inclusion(leaf, index, size, proof, other_root)
    assert not verify_inclusion(b"WrongLeaf", index, size, proof, ROOTS[size])
    assert not verify_inclusion(leaf, index, size * 2, proof, ROOTS[size])
    assert not verify_inclusion(leaf, index, size // 2, proof, ROOTS[size])


@pytest.mark.parametrize("sizes", CONSISTENCY, ids=str)
def test_a_damaged_consistency_proof_is_refused(sizes: tuple[int, int]) -> None:
    old, new = sizes
    proof = tree_of(LEAVES).consistency_proof(old, new)
    for root in (ROOTS[old], ROOTS[new]):
        for damaged in broken(proof, root):
            assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], damaged)
    if old != new:
        assert not verify_consistency(old, ROOTS[new], new, ROOTS[old], proof)
        assert not verify_consistency(old, ROOTS[old], new, ROOTS[new], [])
        assert not verify_consistency(old + 1, ROOTS[old], new, ROOTS[new], proof)
        assert not verify_consistency(old, ROOTS[old], new * 2, ROOTS[new], proof)


def test_an_empty_tree_is_extended_by_any_and_only_by_an_empty_proof() -> None:
    assert verify_consistency(0, EMPTY_ROOT, 5, ROOTS[5], [])
    assert not verify_consistency(0, OTHER_HASH, 5, ROOTS[5], [])
    assert not verify_consistency(0, EMPTY_ROOT, 5, ROOTS[5], [ROOTS[1]])
    assert not verify_consistency(0, EMPTY_ROOT, 0, OTHER_HASH, [])


def test_questions_outside_the_tree_are_errors() -> None:
    tree = tree_of(LEAVES)
    for ask in (
        lambda: tree.leaf(8),
        lambda: tree.root(9),
        lambda: tree.inclusion_proof(8),
        lambda: tree.inclusion_proof(3, 3),
        lambda: tree.inclusion_proof(-1),
        lambda: tree.consistency_proof(9),
        lambda: tree.consistency_proof(5, 4),
    ):
        with pytest.raises(IndexError):
            ask()
