"""Hashes of leaves and nodes, by the fastest that there is on this machine.

`node.protocol._tree_hashing` is in C, for processors with SHA extensions. It is absent where
nothing could be compiled, and cannot be imported where it could not run. Then it is hashlib's
turn, which takes several times as long; every hash is the same.
"""

from __future__ import annotations

from typing import Final

from node.protocol import plain_tree_hashing

try:
    from node.protocol._tree_hashing import leaf_hashes, leaf_hashes_of_two, parents
except ImportError:
    from node.protocol.plain_tree_hashing import leaf_hashes, leaf_hashes_of_two, parents

__all__ = ["IN_C", "leaf_hashes", "leaf_hashes_of_two", "parents"]

IN_C: Final = leaf_hashes is not plain_tree_hashing.leaf_hashes
