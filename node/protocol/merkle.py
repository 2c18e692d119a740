"""The one tree of parameters: identity, transfer and dispute all hash the same way.

A blob is cut into leaves of 1 KiB, the last of which may be shorter. Then

    leaf = SHA-256(0x00 ‖ u64be index ‖ u32be length ‖ bytes)
    node = SHA-256(0x01 ‖ left ‖ right)
    root = SHA-256(0x03 ‖ u64be leaf count ‖ u64be byte length ‖ top)

The tree is perfect: a level of odd length is padded by ``pad[level]``, where ``pad[0]`` is
32 zero bytes and ``pad[l+1] = node(pad[l], pad[l])``. Nothing is ever duplicated, so no two
blobs share a root (the mistake of CVE-2012-2459), and since a leaf binds its own index and
length, and a path must be exactly as long as the tree is deep, neither a padding node nor
an inner node can be shown as a leaf. The escrow contract checks the same four rules.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import TYPE_CHECKING, Final

from node.protocol import plain_tree_hashing, tree_hashing
from node.protocol.errors import LocalProtocolError
from node.protocol.types import DIGEST_BYTES, UINT64_MAX, Digest

if TYPE_CHECKING:
    from collections.abc import Sequence

LEAF_BYTES: Final = plain_tree_hashing.LEAF_BYTES
_BATCH_HEIGHT: Final = 12
"""Leaf hashes are folded 2**12 at a time, so that a tree of any size needs little memory."""
BATCH_LEAVES: Final = 1 << _BATCH_HEIGHT
_BATCH_BYTES: Final = BATCH_LEAVES * DIGEST_BYTES
_MAX_DEPTH: Final = 54
"""The depth of the tree over 2**64 - 1 bytes."""

_ROOT_PREFIX: Final = struct.Struct(">BQQ")


def _paddings() -> tuple[bytes, ...]:
    pads = [bytes(DIGEST_BYTES)]
    for _ in range(_MAX_DEPTH):
        pads.append(tree_hashing.parents(pads[-1] + pads[-1]))
    return tuple(pads)


PADDING: Final = _paddings()
"""``PADDING[level]`` is the root of an empty subtree of that height."""


def leaf_count(byte_length: int) -> int:
    """How many leaves a blob of `byte_length` bytes has: at least 1.

    Raises `LocalProtocolError` for an empty blob or one past 2**64 - 1 bytes.
    """
    if not 0 < byte_length <= UINT64_MAX:
        raise LocalProtocolError(f"a blob has 1 to 2**64 - 1 bytes, got {byte_length}")
    return -(-byte_length // LEAF_BYTES)


def depth(leaves: int) -> int:
    """The height of the tree over `leaves` leaves: ⌈log2⌉, 0 for one leaf."""
    if leaves < 1:
        raise LocalProtocolError(f"a tree has at least 1 leaf, got {leaves}")
    return (leaves - 1).bit_length()


def leaf_length(index: int, byte_length: int) -> int:
    """The exact length of leaf `index` in a blob of `byte_length` bytes."""
    if not 0 <= index < leaf_count(byte_length):
        raise LocalProtocolError(f"leaf {index} is not in a blob of {byte_length} bytes")
    return min(LEAF_BYTES, byte_length - index * LEAF_BYTES)


def _bytes_of(data: bytes | memoryview) -> memoryview:
    view = memoryview(data)
    return view if view.itemsize == 1 and view.ndim == 1 else view.cast("B")


def _require_indices(first_index: int, byte_length: int) -> None:
    """Raise `LocalProtocolError` unless the index of each leaf of so many bytes fits 64 bits."""
    if first_index < 0:
        raise LocalProtocolError(f"a leaf index is at least 0, got {first_index}")
    last = first_index + max(0, byte_length - 1) // LEAF_BYTES
    if last > UINT64_MAX:
        raise LocalProtocolError(f"a leaf index fits 64 bits, got {last}")


def leaf_hash(index: int, data: bytes | memoryview) -> bytes:
    """SHA-256(0x00 ‖ u64be index ‖ u32be length ‖ data), 32 bytes; data is 1 to 1,024 bytes."""
    view = _bytes_of(data)
    if not 1 <= len(view) <= LEAF_BYTES:
        raise LocalProtocolError(f"a leaf has 1 to {LEAF_BYTES} bytes, got {len(view)}")
    _require_indices(index, len(view))
    return tree_hashing.leaf_hashes(view, index)


def leaf_hashes(data: bytes | memoryview, first_index: int = 0) -> bytes:
    """The hashes of the leaves of `data`, concatenated, the first at `first_index`.

    Every leaf is whole but the last, which is whatever remains of `data`.
    """
    view = _bytes_of(data)
    _require_indices(first_index, len(view))
    return tree_hashing.leaf_hashes(view, first_index)


def leaf_hashes_of_two(
    one: bytes | memoryview, other: bytes | memoryview, first_index: int = 0
) -> tuple[bytes, bytes]:
    """`leaf_hashes` of each of two blobs of one length, such as a plaintext and its ciphertext."""
    ones, others = _bytes_of(one), _bytes_of(other)
    if len(ones) != len(others):
        raise LocalProtocolError(f"{len(ones)} bytes beside {len(others)}")
    _require_indices(first_index, len(ones))
    return tree_hashing.leaf_hashes_of_two(ones, others, first_index)


def _fold(hashes: bytes, level: int, height: int) -> bytes:
    """Fold the nodes of `level` into the one node of `height` that stands above them."""
    for current in range(level, height):
        if len(hashes) % (2 * DIGEST_BYTES):
            hashes += PADDING[current]
        hashes = tree_hashing.parents(hashes)
    return hashes


class TreeTop:
    """Folds a stream of leaf hashes into the top of their tree, 4,096 at a time."""

    __slots__ = ("_batches", "_leaves", "_pending")

    def __init__(self) -> None:
        self._pending = bytearray()
        self._batches = bytearray()
        self._leaves = 0

    def update(self, hashes: bytes | memoryview) -> None:
        """Take the next leaf hashes, any whole number of them."""
        if len(hashes) % DIGEST_BYTES:
            raise LocalProtocolError(f"{len(hashes)} bytes are no whole number of hashes")
        self._leaves += len(hashes) // DIGEST_BYTES
        view = memoryview(hashes)
        while len(view) > 0:
            taken = view[: _BATCH_BYTES - len(self._pending)]
            self._pending += taken
            view = view[len(taken) :]
            if len(self._pending) == _BATCH_BYTES:
                self._batches += _fold(bytes(self._pending), 0, _BATCH_HEIGHT)
                self._pending.clear()

    def root(self, byte_length: int) -> Digest:
        """The root, if these were all hashes of `byte_length` bytes; else `LocalProtocolError`."""
        leaves = leaf_count(byte_length)
        if leaves != self._leaves:
            raise LocalProtocolError(
                f"{byte_length} bytes have {leaves} leaves, got the hashes of {self._leaves}"
            )
        if leaves > BATCH_LEAVES:
            return root_of_batches(self.batches(), byte_length)
        top = bytes(self._batches) or _fold(bytes(self._pending), 0, depth(leaves))
        return bind_root(top, leaves, byte_length)

    def batches(self) -> bytes:
        """The nodes over each `BATCH_LEAVES` leaves so far, the last of them padded."""
        last = _fold(bytes(self._pending), 0, _BATCH_HEIGHT) if self._pending else b""
        return bytes(self._batches) + last


def root_of_batches(batches: bytes, byte_length: int) -> Digest:
    """The root over the nodes of a blob of more than `BATCH_LEAVES` leaves, however they came.

    Raises `LocalProtocolError` if their number is not that of `byte_length`.
    """
    leaves = leaf_count(byte_length)
    if leaves <= BATCH_LEAVES or len(batches) != -(-leaves // BATCH_LEAVES) * DIGEST_BYTES:
        raise LocalProtocolError(f"{leaves} leaves, but {len(batches)} bytes of nodes over them")
    return bind_root(_fold(batches, _BATCH_HEIGHT, depth(leaves)), leaves, byte_length)


def bind_root(top: bytes, leaves: int, byte_length: int) -> Digest:
    """SHA-256(0x03 ‖ u64be leaf count ‖ u64be byte length ‖ top)."""
    return Digest(sha256(_ROOT_PREFIX.pack(3, leaves, byte_length) + top).digest())


def root_of_hashes(hashes: bytes | memoryview, byte_length: int) -> Digest:
    """The root over concatenated leaf hashes of a blob of `byte_length` bytes.

    Raises `LocalProtocolError` if their number is not that of `byte_length`.
    """
    if len(hashes) != leaf_count(byte_length) * DIGEST_BYTES:
        raise LocalProtocolError(
            f"{leaf_count(byte_length)} leaves, but {len(hashes)} bytes of leaf hashes"
        )
    top = TreeTop()
    top.update(hashes)
    return top.root(byte_length)


class StreamingRoot:
    """The root of a blob that arrives in chunks of any size; memory does not grow with it.

    `update` returns the leaf hashes that its chunk completed, and `finish` the last of
    them, so that a caller may write them away as it goes.
    """

    __slots__ = ("_leaves", "_length", "_tail", "_top")

    def __init__(self) -> None:
        self._tail = b""
        self._top = TreeTop()
        self._leaves = 0
        self._length = 0

    def update(self, chunk: bytes | memoryview) -> bytes:
        """Take `chunk`; return the hashes of the leaves that are whole now."""
        view = memoryview(chunk).cast("B")
        self._length += len(view)
        hashes = []
        if self._tail:
            needed = view[: LEAF_BYTES - len(self._tail)]
            self._tail += bytes(needed)
            view = view[len(needed) :]
            if len(self._tail) == LEAF_BYTES:
                hashes.append(leaf_hash(self._leaves, self._tail))
                self._leaves += 1
                self._tail = b""
        whole = len(view) - len(view) % LEAF_BYTES
        if whole:
            hashes.append(leaf_hashes(view[:whole], self._leaves))
            self._leaves += whole // LEAF_BYTES
        if whole < len(view):
            self._tail = bytes(view[whole:])
        completed = b"".join(hashes)
        self._top.update(completed)
        return completed

    def finish(self) -> tuple[Digest, int, bytes]:
        """Return the root, the byte length and the hashes not yet returned; call it once.

        Raises `LocalProtocolError` if no byte ever came.
        """
        last = b""
        if self._tail:
            last = leaf_hash(self._leaves, self._tail)
            self._leaves += 1
            self._tail = b""
            self._top.update(last)
        return self._top.root(self._length), self._length, last


def root_of(data: bytes | memoryview) -> Digest:
    """The root of a blob in memory; `LocalProtocolError` if it is empty."""
    builder = StreamingRoot()
    builder.update(data)
    return builder.finish()[0]


def proof(hashes: bytes | memoryview, index: int) -> tuple[bytes, ...]:
    """The siblings from leaf `index` to the top, exactly `depth` of them.

    Raises `LocalProtocolError` if the index is not that of a leaf.
    """
    leaves, rest = divmod(len(hashes), DIGEST_BYTES)
    if rest or not 0 <= index < leaves:
        raise LocalProtocolError(f"no leaf {index} among {len(hashes)} bytes of leaf hashes")
    level_hashes = bytes(hashes)
    path = []
    for level in range(depth(leaves)):
        if len(level_hashes) % (2 * DIGEST_BYTES):
            level_hashes += PADDING[level]
        sibling = (index ^ 1) * DIGEST_BYTES
        path.append(level_hashes[sibling : sibling + DIGEST_BYTES])
        level_hashes = tree_hashing.parents(level_hashes)
        index >>= 1
    return tuple(path)


def verify_proof(
    root: bytes,
    leaf_hash: bytes,
    index: int,
    path: Sequence[bytes],
    leaf_count: int,
    byte_length: int,
) -> bool:
    """Whether `leaf_hash` is leaf `index` of the blob that `root` names.

    Total: False for an index that is no leaf's, a path that is not exactly as long as the
    tree is deep, a count that is not that of the byte length, and anything else.
    """
    if not 0 < byte_length <= UINT64_MAX or leaf_count != -(-byte_length // LEAF_BYTES):
        return False
    if not 0 <= index < leaf_count or len(path) != depth(leaf_count):
        return False
    if any(len(digest) != DIGEST_BYTES for digest in (root, leaf_hash, *path)):
        return False
    node = leaf_hash
    for sibling in path:
        pair = (sibling, node) if index & 1 else (node, sibling)
        node = tree_hashing.parents(b"".join(pair))
        index >>= 1
    return bind_root(node, leaf_count, byte_length) == root


def verify_leaves(
    hashes: bytes | memoryview, first_index: int, data: bytes | memoryview, byte_length: int
) -> int | None:
    """Return the first leaf of `data` that is not the one in `hashes`, or None if all are.

    `hashes` is the whole list of a blob of `byte_length` bytes, already checked against
    its root; `data` starts at leaf `first_index`. A leaf that is shorter or longer than its
    index allows, or past the end, is bad however it hashes.
    """
    leaves = leaf_count(byte_length)
    if len(hashes) != leaves * DIGEST_BYTES:
        raise LocalProtocolError(f"{leaves} leaves, but {len(hashes)} bytes of leaf hashes")
    if not 0 <= first_index < leaves:
        raise LocalProtocolError(f"no leaf {first_index} in a blob of {leaves} leaves")
    got = leaf_hashes(data, first_index)
    count = len(got) // DIGEST_BYTES
    start = first_index * DIGEST_BYTES
    end = first_index * LEAF_BYTES + len(data)
    fits = end == byte_length or (end < byte_length and end % LEAF_BYTES == 0)
    if fits and got == hashes[start : start + len(got)]:
        return None
    for position in range(count):
        index = first_index + position
        at, want = position * DIGEST_BYTES, index * DIGEST_BYTES
        reach = min(end, (index + 1) * LEAF_BYTES) - index * LEAF_BYTES
        if index >= leaves or reach != leaf_length(index, byte_length):
            return index
        if got[at : at + DIGEST_BYTES] != hashes[want : want + DIGEST_BYTES]:
            return index
    return None
