"""Hashes of leaves and nodes by hashlib: what they are, and how where there is nothing faster.

The same functions as in `node.protocol._tree_hashing`, for arguments that `node.protocol.merkle`
has checked. Most of the time goes into hashlib's calls, not into SHA-256.
"""

from __future__ import annotations

import struct
from hashlib import sha256
from typing import Final

from node.protocol.types import DIGEST_BYTES

LEAF_BYTES: Final = 1024

_LEAF_PREFIX: Final = struct.Struct(">QI")
_PAIR: Final = struct.Struct(f"{2 * DIGEST_BYTES}s")
_LEAF: Final = sha256(b"\x00")
_NODE: Final = sha256(b"\x01")
"""Hashers that have read their domain's byte: a copy costs less than a new one."""


def leaf_hashes(data: bytes | memoryview, first_index: int) -> bytes:
    """The hashes of the leaves of `data`, concatenated; the last may be shorter than a leaf is."""
    view = memoryview(data)
    copy, pack = _LEAF.copy, _LEAF_PREFIX.pack
    whole = len(view) // LEAF_BYTES
    hashes = []
    offset = 0
    for index in range(first_index, first_index + whole):
        hasher = copy()
        hasher.update(pack(index, LEAF_BYTES))
        hasher.update(view[offset : offset + LEAF_BYTES])
        hashes.append(hasher.digest())
        offset += LEAF_BYTES
    if offset < len(view):
        hasher = copy()
        hasher.update(pack(first_index + whole, len(view) - offset))
        hasher.update(view[offset:])
        hashes.append(hasher.digest())
    return b"".join(hashes)


def leaf_hashes_of_two(
    one: bytes | memoryview, other: bytes | memoryview, first_index: int
) -> tuple[bytes, bytes]:
    """`leaf_hashes` of each of two blobs of one length.

    What both have in common, index and length, is hashed once: that saves a tenth of the time.
    """
    ones, others = memoryview(one), memoryview(other)
    copy, pack = _LEAF.copy, _LEAF_PREFIX.pack
    hashes, beside, index = [], [], first_index
    for offset in range(0, len(ones), LEAF_BYTES):
        leaf = slice(offset, offset + LEAF_BYTES)
        hasher = copy()
        hasher.update(pack(index, min(LEAF_BYTES, len(ones) - offset)))
        second = hasher.copy()
        hasher.update(ones[leaf])
        second.update(others[leaf])
        hashes.append(hasher.digest())
        beside.append(second.digest())
        index += 1
    return b"".join(hashes), b"".join(beside)


def parents(hashes: bytes | memoryview) -> bytes:
    """The nodes one level above an even number of hashes: half as many."""
    copy = _NODE.copy
    nodes = []
    for (pair,) in _PAIR.iter_unpack(hashes):
        hasher = copy()
        hasher.update(pair)
        nodes.append(hasher.digest())
    return b"".join(nodes)
