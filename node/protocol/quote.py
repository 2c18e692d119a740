"""The quote: all terms of one trade, signed by the broker, checked by the escrow.

Frozen: signatures made over it stay valid for as long as the protocol lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eth_hash.auto import keccak

from node.protocol.eip712 import Domain, digest
from node.protocol.errors import LocalProtocolError, RemoteProtocolError
from node.protocol.schema import Message, raw_address
from node.protocol.signing import recover
from node.protocol.types import Address, Digest, UnixTime, Wei

MAX_REVEAL_HORIZON: Final = 30 * 24 * 3600
"""The escrow refuses a `reveal_by` further ahead than this (seconds)."""
LAPSE_SECONDS: Final = 24 * 3600
"""So long after its last deadline nobody waits any more for a side that has vanished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote(Message):
    """Who pays whom for which bytes, and what happens when somebody falls silent."""

    trade_id: Digest
    buyer: Address
    seller: Address
    encryptor: Address
    """Who holds the secret: the seller itself, unless a product has no recipe."""
    asset: Address
    """The zero address for ETH, or an ERC-20."""
    price: Wei
    """What the buyer pays, the fee included."""
    fee: Wei
    """The broker's part of `price`, taken only from a paid trade."""
    fee_recipient: Address
    offer_root: Digest
    goods_root: Digest
    leaf_count: int
    byte_length: int
    secret_commitment: Digest
    dh_commitment: Digest
    fund_by: UnixTime
    reveal_by: UnixTime
    grace: int
    dispute_window: int
    receipt_hash: Digest

    def __post_init__(self) -> None:
        Message.__post_init__(self)
        if self.fee > self.price:
            raise LocalProtocolError(f"fee {self.fee} is over the price {self.price}")
        if not self.fund_by < self.reveal_by:
            raise LocalProtocolError(
                f"fund_by {self.fund_by} must come before reveal_by {self.reveal_by}"
            )

    @property
    def refund_from(self) -> UnixTime:
        """The last moment at which the escrow still refuses a refund."""
        return UnixTime(self.reveal_by + self.grace)

    @property
    def lapses_after(self) -> UnixTime:
        """When a side that can neither gain nor lose any more stops waiting for the others."""
        return UnixTime(self.refund_from + self.dispute_window + LAPSE_SECONDS)


def trade_id_of(buyer: Address, seller: Address, offer_digest: Digest, nonce: Digest) -> Digest:
    """Return keccak256(abi.encode(buyer, seller, offerDigest, buyerNonce)).

    Derived, never chosen: two quotes for one id are evidence against the broker.
    """
    words = bytes(12) + raw_address(buyer) + bytes(12) + raw_address(seller) + offer_digest + nonce
    return Digest(keccak(words))


def check_signer(domain: Domain, quote: Quote, signature: bytes, signer: Address) -> None:
    """Raise `RemoteProtocolError("wrong-signer")` unless `signer` signed `quote` here.

    A quote for another chain or another escrow recovers to somebody else, and fails too.
    """
    found = recover(digest(domain, quote), signature)
    if found != signer:
        raise RemoteProtocolError(
            "wrong-signer",
            f"quote {quote.trade_id.hex()[:16]} is not signed by {signer} "
            f"for chain {domain.chain_id}, escrow {domain.escrow}",
        )
