"""The structs of the clearing house as its ABI has them, and what its brokers sign of them.

Hashed by the ABI encoder, apart from `node.protocol.clearing`, which tests hold against this. The
tree is the node's own.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from node.protocol.sum_tree import Node

OPENING: Final = (
    "Opening(bytes32 round,address asset,uint64 payBy,uint64 postBy,uint64 challengePeriod)"
)
CLEARING: Final = "Clearing(bytes32 round,bytes32 root,uint256 sum,uint64 leaves,uint64 version)"


class Opening(NamedTuple):
    """What is agreed on before a round begins, in the order of the Solidity struct."""

    round: bytes
    asset: str
    pay_by: int
    post_by: int
    challenge_period: int

    def struct_hash(self) -> bytes:
        """Return the EIP-712 struct hash."""
        kinds = ["bytes32", "bytes32", "address", "uint64", "uint64", "uint64"]
        return bytes(keccak(encode(kinds, (keccak(text=OPENING), *self))))


class Clearing(NamedTuple):
    """A root that was posted, in the order of the Solidity struct."""

    round: bytes
    root: bytes
    pot: int
    leaves: int
    asset: str
    stands_from: int


def clearing_hash(round_id: bytes, top: Node, leaves: int, version: int) -> bytes:
    """Return the EIP-712 struct hash of a root, as the `version`-th of its round."""
    kinds = ["bytes32", "bytes32", "bytes32", "uint256", "uint64", "uint64"]
    return bytes(keccak(encode(kinds, (keccak(text=CLEARING), round_id, *top, leaves, version))))
