"""The tree of parameters: a plain oracle, known answers, and everything it must refuse."""

from __future__ import annotations

import math
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol import merkle
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Digest

lengths = st.one_of(
    st.integers(1, 40 * 1024),
    st.integers(0, 5).map(lambda n: (1 << n) * 1024),
    st.tuples(st.integers(1, 20), st.integers(-1, 1)).map(lambda t: max(1, t[0] * 1024 + t[1])),
)


@st.composite
def blobs(draw: st.DrawFn) -> bytes:
    """Bytes that differ from leaf to leaf, of a length drawn near the tree's edges."""
    length, seed = draw(lengths), draw(st.binary(min_size=1, max_size=8))
    block = b"".join(sha256(seed + bytes([i])).digest() for i in range(8))
    return b"".join(sha256(block + i.to_bytes(4)).digest() for i in range(-(-length // 32)))[
        :length
    ]


def oracle_leaves(data: bytes) -> list[bytes]:
    return [
        sha256(b"\0" + (at // 1024).to_bytes(8) + len(data[at : at + 1024]).to_bytes(4)
               + data[at : at + 1024]).digest()
        for at in range(0, len(data), 1024)
    ]  # fmt: skip


def oracle_root(data: bytes) -> bytes:
    """The rules as they are written, one after the other, on a tree filled up to a power of 2."""
    leaves = oracle_leaves(data)
    depth = math.ceil(math.log2(len(leaves)))
    row = leaves + [bytes(32)] * (2**depth - len(leaves))
    while len(row) > 1:
        row = [sha256(b"\1" + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)]
    return sha256(b"\3" + len(leaves).to_bytes(8) + len(data).to_bytes(8) + row[0]).digest()


KNOWN_ANSWERS = {
    1: "8a9cc5cedaa32742c248370bded61e55cf3b088b52845ee52fc829508e864312",
    1024: "e59c09fe0652c276c7c371ce539c299de43d98662e207bfe1e19a41fed6824d4",
    1025: "48bb69396710915a529da8a1a4827db6bcfd7ad5b7789224d6c57b036ef58031",
    3000: "832631482de9f91d7234f61fa70c625225b9e121747aa2a4ea72905ce2b28aec",
    5 * 1024: "44bbd59c5c7beda509eaa7546be0ecd5f10a652459e601b7d41a6dc397e2d37e",
    70_000: "a8e79e0ab40e942d5efd4a1b7d52aea87e1341628932fe40f280e5a7c6915efa",
}
"""Roots of the bytes 0, 1, … 250, 0, 1, … by a program of nothing but hashlib."""


@pytest.mark.parametrize("length", KNOWN_ANSWERS)
def test_known_blobs_have_known_roots(length: int) -> None:
    data = bytes(i % 251 for i in range(length))
    assert merkle.root_of(data).hex() == KNOWN_ANSWERS[length]


@given(blobs())
def test_the_root_is_what_the_written_rules_say(data: bytes) -> None:
    assert merkle.leaf_hashes(data) == b"".join(oracle_leaves(data))
    assert merkle.root_of(data) == oracle_root(data)


@given(blobs(), st.data())
def test_a_stream_in_any_chunks_has_the_same_root(data: bytes, draw: st.DataObject) -> None:
    cuts = sorted(draw.draw(st.lists(st.integers(0, len(data)), max_size=6)))
    builder = merkle.StreamingRoot()
    completed = [
        builder.update(data[begin:end])
        for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)
    ]
    root, length, last = builder.finish()
    hashes = b"".join([*completed, last])
    assert (root, length) == (merkle.root_of(data), len(data))
    assert hashes == merkle.leaf_hashes(data)
    assert merkle.root_of_hashes(hashes, len(data)) == root


@pytest.mark.parametrize("leaves", [4095, 4096, 4097, 8192, 3 * 4096 + 5])
def test_trees_of_more_than_one_batch_follow_the_same_rules(leaves: int) -> None:
    hashes = b"".join(sha256(i.to_bytes(4)).digest() for i in range(leaves))
    row = [hashes[at : at + 32] for at in range(0, len(hashes), 32)]
    row += [bytes(32)] * (2 ** math.ceil(math.log2(leaves)) - leaves)
    while len(row) > 1:
        row = [sha256(b"\1" + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)]
    byte_length = leaves * 1024 - 7
    root = sha256(b"\3" + leaves.to_bytes(8) + byte_length.to_bytes(8) + row[0]).digest()
    assert merkle.root_of_hashes(hashes, byte_length) == root
    path = merkle.proof(hashes, leaves - 1)
    last = hashes[-32:]
    assert merkle.verify_proof(root, last, leaves - 1, path, leaves, byte_length)
    uneven = merkle.TreeTop()
    for at in range(0, len(hashes), 32 * 999):
        uneven.update(hashes[at : at + 32 * 999])
    assert uneven.root(byte_length) == root


@given(blobs(), st.data())
def test_another_byte_anywhere_is_another_root(data: bytes, draw: st.DataObject) -> None:
    at = draw.draw(st.integers(0, len(data) - 1))
    flip = draw.draw(st.integers(1, 255))
    other = data[:at] + bytes([data[at] ^ flip]) + data[at + 1 :]
    assert merkle.root_of(other) != merkle.root_of(data)


@given(blobs(), st.integers(1, 3000))
def test_another_length_is_another_root_even_by_zeros(data: bytes, more: int) -> None:
    assert merkle.root_of(data + bytes(more)) != merkle.root_of(data)
    assert merkle.root_of(data[:-1] or b"x" + data) != merkle.root_of(data)


@given(blobs(), st.integers(1, 2**64 - 1))
def test_a_leaf_hash_binds_its_index(data: bytes, shift: int) -> None:
    leaf = data[:1024]
    assert merkle.leaf_hash(shift, leaf) != merkle.leaf_hash(0, leaf)


def test_equal_leaves_do_not_commute_or_duplicate() -> None:
    one = b"a" * 1024
    roots = {merkle.root_of(one * n) for n in range(1, 9)}
    assert len(roots) == 8
    assert merkle.root_of(one + b"b" * 1024) != merkle.root_of(b"b" * 1024 + one)


@given(blobs())
def test_every_leaf_can_be_proved_and_the_short_last_one_too(data: bytes) -> None:
    hashes, root = merkle.leaf_hashes(data), merkle.root_of(data)
    leaves = merkle.leaf_count(len(data))
    for index in {0, leaves // 2, leaves - 1}:
        leaf = merkle.leaf_hash(index, data[index * 1024 : (index + 1) * 1024])
        path = merkle.proof(hashes, index)
        assert len(path) == merkle.depth(leaves)
        assert merkle.verify_proof(root, leaf, index, path, leaves, len(data))


@given(blobs(), st.data())
def test_a_proof_holds_for_nothing_but_its_own_leaf(data: bytes, draw: st.DataObject) -> None:
    hashes, root = merkle.leaf_hashes(data), merkle.root_of(data)
    leaves = merkle.leaf_count(len(data))
    index = draw.draw(st.integers(0, leaves - 1))
    leaf, path = hashes[index * 32 : index * 32 + 32], merkle.proof(hashes, index)
    depth = len(path)

    def holds(
        root: bytes = root,
        leaf: bytes = leaf,
        index: int = index,
        path: tuple[bytes, ...] = path,
        leaves: int = leaves,
        length: int = len(data),
    ) -> bool:
        return merkle.verify_proof(root, leaf, index, path, leaves, length)

    assert holds()
    other = draw.draw(st.integers(0, leaves + 3).filter(lambda i: i != index))
    assert not holds(index=other)
    assert not holds(index=index + 2**depth)  # the path alone cannot tell these two apart
    assert not holds(index=-1)
    assert not holds(index=leaves)
    assert not holds(leaves=leaves + 1)
    assert not holds(length=len(data) + 1)
    assert not holds(length=0, leaves=0)
    assert not holds(leaf=sha256(leaf).digest())
    assert not holds(root=sha256(root).digest())
    assert not holds(path=(*path, bytes(32)))
    assert not holds(path=(*path, merkle.PADDING[depth]))
    assert not holds(path=path[:-1]) or depth == 0
    assert not holds(path=(*path[:-1], path[-1][:31]) if path else (b"",))


def test_an_inner_node_is_never_a_leaf() -> None:
    data = bytes(range(256)) * 16  # four leaves
    hashes, root = merkle.leaf_hashes(data), merkle.root_of(data)
    inner = sha256(b"\1" + hashes[:64]).digest()
    upper = merkle.proof(hashes, 0)[1:]
    for leaves, length in [(4, 4096), (2, 2048), (2, 4096)]:
        for index in range(4):
            assert not merkle.verify_proof(root, inner, index, upper, leaves, length)
    # nor do the bytes of two hashes, shown as a leaf, hash to the node over them
    assert merkle.leaf_hash(0, hashes[:64]) != inner


def test_a_padding_node_is_never_a_leaf() -> None:
    data = bytes(3 * 1024)
    hashes, root = merkle.leaf_hashes(data), merkle.root_of(data)
    path = (hashes[64:96], sha256(b"\1" + hashes[:64]).digest())
    top = sha256(b"\1" + path[1] + sha256(b"\1" + hashes[64:] + bytes(32)).digest()).digest()
    assert merkle.bind_root(top, 3, len(data)) == root  # so only the index is wrong below
    assert not merkle.verify_proof(root, bytes(32), 3, path, 3, len(data))
    assert not merkle.verify_proof(root, bytes(32), 3, path, 4, 4 * 1024)


def test_a_root_over_a_count_that_is_not_that_of_its_length_proves_nothing() -> None:
    hashes = merkle.leaf_hashes(bytes(2048))
    top = sha256(b"\1" + hashes).digest()
    for leaves, length in [(2, 2048), (2, 1025), (2, 1024), (2, 2049), (1, 2048), (3, 2048)]:
        root = merkle.bind_root(top, leaves, length)
        held = merkle.verify_proof(root, hashes[:32], 0, (hashes[32:],), leaves, length)
        assert held == (leaves == 2 and length in {2048, 1025})


@given(blobs(), st.data())
def test_a_range_of_leaves_is_good_or_its_first_bad_leaf_is_named(
    data: bytes, draw: st.DataObject
) -> None:
    hashes, leaves = merkle.leaf_hashes(data), merkle.leaf_count(len(data))
    first = draw.draw(st.integers(0, leaves - 1))
    last = draw.draw(st.integers(first, leaves - 1))
    part = data[first * 1024 : (last + 1) * 1024]
    assert merkle.verify_leaves(hashes, first, part, len(data)) is None
    assert merkle.verify_leaves(hashes, first, memoryview(part), len(data)) is None
    bad = draw.draw(st.integers(first, last))
    at = (bad - first) * 1024
    spoilt = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
    spoilt = spoilt[:-1] + bytes([spoilt[-1] ^ (last != bad)])
    assert merkle.verify_leaves(hashes, first, spoilt, len(data)) == bad


def test_a_leaf_of_the_wrong_length_is_bad_even_if_the_list_says_so() -> None:
    data = bytes(2500)
    short = b"".join([merkle.leaf_hash(0, bytes(9)), merkle.leaf_hashes(data)[32:]])
    assert merkle.verify_leaves(short, 0, bytes(9), 2500) == 0
    hashes = merkle.leaf_hashes(data)
    assert merkle.verify_leaves(hashes, 1, data[1024:] + b"\0", 2500) == 2
    assert merkle.verify_leaves(hashes, 1, data[1024:] + bytes(1000), 2500) == 2
    assert merkle.verify_leaves(hashes, 2, bytes(452 + 1024), 2500) == 2
    assert merkle.verify_leaves(hashes, 0, data[:1500], 2500) == 1


@pytest.mark.parametrize("byte_length", [0, -1, 2**64])
def test_no_tree_stands_over_nothing_or_over_too_much(byte_length: int) -> None:
    with pytest.raises(LocalProtocolError):
        merkle.leaf_count(byte_length)
    assert not merkle.verify_proof(bytes(32), bytes(32), 0, (), 1, byte_length)


def test_malformed_requests_of_our_own_are_refused() -> None:
    with pytest.raises(LocalProtocolError):
        merkle.StreamingRoot().finish()
    with pytest.raises(LocalProtocolError):
        merkle.root_of_hashes(bytes(64), 1024)
    with pytest.raises(LocalProtocolError):
        merkle.root_of_hashes(bytes(33), 1024)
    with pytest.raises(LocalProtocolError):
        merkle.proof(bytes(64), 2)
    with pytest.raises(LocalProtocolError):
        merkle.leaf_hash(2**64, b"x")
    with pytest.raises(LocalProtocolError):
        merkle.leaf_hash(0, bytes(1025))
    with pytest.raises(LocalProtocolError):
        merkle.verify_leaves(bytes(64), 0, bytes(1024), 1024)
    with pytest.raises(LocalProtocolError):
        merkle.verify_leaves(bytes(32), 1, bytes(1024), 1024)
    with pytest.raises(LocalProtocolError):
        merkle.TreeTop().update(bytes(31))
    assert merkle.root_of(b"x") == Digest(merkle.root_of_hashes(merkle.leaf_hash(0, b"x"), 1))
