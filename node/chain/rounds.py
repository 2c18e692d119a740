"""A clearing house in the market's words: rounds, roots, and what an account may ask for.

`clearing` sends these calls, and reads the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eth_abi.abi import encode
from eth_hash.auto import keccak

from node.protocol.clearing import EXPIRY, Opening
from node.protocol.sum_tree import Node, Payout
from node.protocol.types import Address, Digest, UnixTime, Wei

_POSTED: Final = "(bytes32,bytes32,uint256,uint64,address,uint64)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """A round as the house sees it."""

    asset: Address
    pay_by: UnixTime
    post_by: UnixTime
    challenge_period: int
    posted_at: UnixTime
    """When the root that is there was posted, 0 if there is none."""
    leaves: int
    version: int
    """How many roots were posted: what brokers sign of the next one."""
    pot: Wei
    """What was paid in and not taken back."""
    taken: Wei
    """What was claimed of it, once its root expired."""
    clearing: Digest
    """Of the root that is there: `PostedRoot.hash`."""

    @property
    def stands_from(self) -> UnixTime:
        """From when on the root that is there can be claimed under."""
        return UnixTime(self.posted_at + self.challenge_period + 1)

    @property
    def expires_at(self) -> UnixTime:
        """From when on anybody can end it."""
        return UnixTime(self.stands_from + EXPIRY)


@dataclass(frozen=True, slots=True, kw_only=True)
class PostedRoot:
    """A root as claims bring it again, in the order of the Solidity struct."""

    round: Digest
    root: Digest
    sum: Wei
    leaves: int
    asset: Address
    stands_from: UnixTime

    @property
    def fields(self) -> tuple[object, ...]:
        """The values in order."""
        return (self.round, self.root, self.sum, self.leaves, self.asset, self.stands_from)

    @property
    def hash(self) -> Digest:
        """What the contract keeps of it."""
        return Digest(keccak(encode((_POSTED,), (self.fields,))))


# --- calls: what an account may ask of the house


@dataclass(frozen=True, slots=True)
class Open:
    """Anyone opens a round that a quorum signed."""

    opening: Opening
    signatures: bytes
    """As `quorum.join_signatures` puts them."""


@dataclass(frozen=True, slots=True)
class Pay:
    """Anyone pays into a round for an account; ETH travels with the transaction."""

    round: Digest
    asset: Address
    account: Address
    amount: Wei


@dataclass(frozen=True, slots=True)
class Post:
    """Anyone posts a root that a quorum signed."""

    round: Digest
    root: Node
    leaves: int
    signatures: bytes


@dataclass(frozen=True, slots=True)
class Veto:
    """A broker takes a root back."""

    round: Digest


@dataclass(frozen=True, slots=True)
class Claim:
    """Anyone has the account of a leaf credited."""

    posted: PostedRoot
    index: int
    payout: Payout
    path: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Expire:
    """Anyone ends a root that could be claimed under for `EXPIRY`."""

    round: Digest


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Anyone has an account credited what it paid in, or its share of what nobody claimed."""

    round: Digest
    account: Address


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Anyone pays out an account's credit to that account."""

    asset: Address
    account: Address


HouseCall = Open | Pay | Post | Veto | Claim | Expire | Reclaim | Withdraw
