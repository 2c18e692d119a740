"""The Merkle-sum tree of a clearing round: who gets what of a pot, under one root.

    leaf = keccak256(0x00 ‖ round ‖ index ‖ account ‖ amount)
    node = keccak256(0x01 ‖ left hash ‖ left sum ‖ right hash ‖ right sum)

Integers are 32 bytes, an account is 20. A level of odd length is filled up with a node of no hash
and no money. What the leaves below come to is part of what is hashed above, and whoever checks a
path adds it up on the way: so no leaves of one root are together worth more than its sum, whoever
made the tree. `ClearingHouse` checks the very same; it takes a root whose sum is the pot.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from eth_hash.auto import keccak

from node.protocol.errors import LocalProtocolError
from node.protocol.schema import raw_address
from node.protocol.types import DIGEST_BYTES, NO_ADDRESS, UINT256_MAX, Address, Digest, Wei

MAX_LEAVES: Final = 1 << 15
"""Of one root, in `ClearingHouse`."""
MAX_POT: Final = 2**128 - 1
"""What a round can collect, in the smallest unit of its asset."""


class Node(NamedTuple):
    """A node, and what the leaves under it come to."""

    hash: Digest
    sum: Wei


class Payout(NamedTuple):
    """What an account gets: a leaf."""

    account: Address
    amount: Wei


NOTHING: Final = Node(Digest(bytes(DIGEST_BYTES)), Wei(0))
"""Fills up a level of odd length."""


def leaf(round_id: Digest, index: int, account: Address, amount: Wei) -> Node:
    """Return the node of a payout."""
    named = b"\x00" + round_id + _word(index) + raw_address(account) + _word(amount)
    return Node(Digest(keccak(named)), amount)


def above(left: Node, right: Node) -> Node:
    """Return the node over two."""
    named = b"\x01" + left.hash + _word(left.sum) + right.hash + _word(right.sum)
    return Node(Digest(keccak(named)), Wei(left.sum + right.sum))


def depth(leaves: int) -> int:
    """Return how many nodes lie beside the way of each of so many leaves: ⌈log2⌉."""
    return (leaves - 1).bit_length()


def is_in(
    root: Node, leaves: int, round_id: Digest, index: int, payout: Payout, path: Sequence[Node]
) -> bool:
    """Whether the root has this leaf: just what `ClearingHouse` takes a claim for.

    `path`: the nodes beside the way up, the lowest first.
    """
    if not 0 <= index < leaves or len(path) != depth(leaves):
        return False
    if not 0 <= payout.amount <= UINT256_MAX:
        return False
    found = leaf(round_id, index, payout.account, payout.amount)
    for height, beside in enumerate(path):
        if not 0 <= beside.sum <= UINT256_MAX - found.sum:
            return False
        found = above(beside, found) if index >> height & 1 else above(found, beside)
    return found == root


class SumTree:
    """The tree over what each account gets of a round; immutable."""

    def __init__(self, round_id: Digest, payouts: Sequence[tuple[Address, Wei]]) -> None:
        """An account may have several payouts.

        Raises `LocalProtocolError` for no payouts or more than `MAX_LEAVES`, for one of less than
        nothing, for one to the zero account, which nobody could draw, and for a sum over `MAX_POT`.
        """
        if not 0 < len(payouts) <= MAX_LEAVES:
            raise LocalProtocolError(f"a root has 1 to {MAX_LEAVES} leaves, got {len(payouts)}")
        for index, (account, amount) in enumerate(payouts):
            if account == NO_ADDRESS:
                raise LocalProtocolError(f"payout {index} is to the zero account")
            if amount < 0:
                raise LocalProtocolError(f"payout {index} is of {amount}")
        total = sum(amount for _, amount in payouts)
        if total > MAX_POT:
            raise LocalProtocolError(f"payouts come to {total}, a pot to {MAX_POT} at most")
        self.round_id: Final = round_id
        self.payouts: Final = tuple(Payout(*payout) for payout in payouts)
        leaves = [leaf(round_id, i, *payout) for i, payout in enumerate(self.payouts)]
        levels = [leaves]
        while len(levels[-1]) > 1:
            below = levels[-1]
            if len(below) % 2:
                below.append(NOTHING)
            levels.append([above(*pair) for pair in zip(below[::2], below[1::2], strict=True)])
        self._levels: Final = levels

    @property
    def root(self) -> Node:
        """The top, and what all leaves come to."""
        return self._levels[-1][0]

    def path(self, index: int) -> tuple[Node, ...]:
        """Return the nodes beside the way up from a leaf, the lowest first.

        Raises `LocalProtocolError` if there is no such leaf.
        """
        if not 0 <= index < len(self.payouts):
            raise LocalProtocolError(f"there is no leaf {index} of {len(self.payouts)}")
        return tuple(level[index >> height ^ 1] for height, level in enumerate(self._levels[:-1]))


def _word(value: int) -> bytes:
    return value.to_bytes(32, "big")
