"""What a price is made of: the buyer's bid and the seller's ask, each signed by its account.

A broker that made up either would set the price. So both are typed data of their own accounts, for
one trade id; whoever signs a quote looks at them first. Neither says anything of the other side:
a price follows from both (`broker_node.mechanisms.price`).
"""

from __future__ import annotations

from dataclasses import dataclass

from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.quote import trade_id_of
from node.protocol.schema import Message
from node.protocol.signing import recover
from node.protocol.types import Address, Digest, PeerId, Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Bid(Message):
    """What the buyer signs: what the trade is worth to it, and its key."""

    trade_id: Digest
    valuation: Wei
    buyer_key: Digest
    """X25519, for this trade alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AskingPrice(Message):
    """What the seller signs: the least that must reach it, for this offer."""

    trade_id: Digest
    offer_digest: Digest
    """As the id, which follows from it and from a nonce that the seller has yet to see."""
    ask: Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class BidAndAsk(Message):
    """Both of one trade, with what its id is derived from."""

    buyer_nonce: Digest
    bid: Bid
    bid_signature: bytes
    asking: AskingPrice
    ask_signature: bytes


def check_bid(
    domain: Domain, bid: Bid, signature: bytes, buyer: Address, *, peer: PeerId | None = None
) -> None:
    """Raise `RemoteProtocolError("not-the-buyers-bid")` unless the buyer's account signed it.

    ``bad-signature`` for what is no signature; `peer` is whom it is from.
    """
    _check(domain, bid, signature, buyer, "not-the-buyers-bid", peer)


def check_ask(
    domain: Domain,
    asking: AskingPrice,
    signature: bytes,
    seller: Address,
    *,
    peer: PeerId | None = None,
) -> None:
    """As `check_bid`, of the seller: ``not-the-sellers-ask``."""
    _check(domain, asking, signature, seller, "not-the-sellers-ask", peer)


def check_bids(
    domain: Domain,
    said: BidAndAsk,
    *,
    trade_id: Digest,
    buyer: Address,
    seller: Address,
    offer_digest: Digest,
) -> None:
    """Raise `RemoteProtocolError` unless both are of these two, for this trade of this offer.

    ``wrong-trade-id`` if the id is not derived as it must be, or is not that of bid and ask;
    ``another-offer`` if the ask is; ``not-the-buyers-bid``, ``not-the-sellers-ask``,
    ``bad-signature``.
    """
    derived = trade_id_of(buyer, seller, offer_digest, said.buyer_nonce)
    if {trade_id, said.bid.trade_id, said.asking.trade_id} != {derived}:
        raise RemoteProtocolError("wrong-trade-id", f"{trade_id.hex()}, derived {derived.hex()}")
    if said.asking.offer_digest != offer_digest:
        raise RemoteProtocolError("another-offer", said.asking.offer_digest.hex())
    check_bid(domain, said.bid, said.bid_signature, buyer)
    check_ask(domain, said.asking, said.ask_signature, seller)


def _check(
    domain: Domain,
    said: Bid | AskingPrice,
    signature: bytes,
    account: Address,
    reason: str,
    peer: PeerId | None,
) -> None:
    try:
        found = recover(digest(domain, said), signature)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(error.reason, error.detail, peer=peer) from error
    if found != account:
        raise RemoteProtocolError(reason, f"signed by {found}, not by {account}", peer=peer)
