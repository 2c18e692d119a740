"""What is said in a call market: bids of a budget for many offers, and what they were given.

Where prices follow from all bids at once (`broker_node.mechanisms.eeg`), a buyer names no price:
it says what it would spend in this call, and on which of its trials. What it is given is its own
to check, by `check_allocations`; the prices themselves follow from bids of others, which it does
not see, so that a broker that clears wrongly is found by whoever has its certificate.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from node.protocol.eip712 import Domain, digest
from node.protocol.errors import RemoteProtocolError
from node.protocol.schema import Message
from node.protocol.signing import recover
from node.protocol.types import Address, Digest, Millionths, PeerId, Wei

LEAST_PRICE: Final = Wei(1)
"""The escrow takes no trade of nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BudgetBid(Message):
    """What the buyer signs: the most that it spends in one call, and on which of its trials.

    A trial's id follows from base, offer and the broker's notice, of which the base is signed
    anew in each round: a bid is good for one call of one broker.
    """

    trials: tuple[Digest, ...]
    budget: Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation(Message):
    """One of the offers that a call gives to a buyer, and for how much."""

    offer_digest: Digest
    price: Wei
    predicted: Millionths
    """The gain that the broker's prediction had for it when it cleared."""


def check_budget_bid(
    domain: Domain, bid: BudgetBid, signature: bytes, buyer: Address, *, peer: PeerId | None = None
) -> None:
    """Raise `RemoteProtocolError` for a bid that could be part of no call.

    ``no-budget``: under what the escrow takes; ``no-trial``, ``trial-twice``;
    ``not-the-buyers-bid``, ``bad-signature``. `peer` is whom it is from.
    """
    if bid.budget < LEAST_PRICE:
        raise RemoteProtocolError("no-budget", f"{bid.budget} wei", peer=peer)
    if not bid.trials:
        raise RemoteProtocolError("no-trial", "a bid names what it is for", peer=peer)
    if len(set(bid.trials)) < len(bid.trials):
        raise RemoteProtocolError("trial-twice", f"of {len(bid.trials)}", peer=peer)
    try:
        found = recover(digest(domain, bid), signature)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(error.reason, error.detail, peer=peer) from error
    if found != buyer:
        raise RemoteProtocolError(
            "not-the-buyers-bid", f"signed by {found}, not by {buyer}", peer=peer
        )


def check_allocations(
    given: Sequence[Allocation], *, bid_on: Mapping[Digest, Address], budget: Wei, peer: PeerId
) -> None:
    """Raise `RemoteProtocolError` unless the answer of `peer` is one to such a bid.

    `bid_on` are the offers whose trials the bid has named, and the seller of each. ``not-tried``;
    ``allocated-twice``: of one seller, whose longer beginning has the shorter one in it;
    ``no-price`` for less than the escrow takes, ``over-budget`` for all together.
    """
    for one in given:
        if one.offer_digest not in bid_on:
            raise RemoteProtocolError("not-tried", one.offer_digest.hex(), peer=peer)
        if one.price < LEAST_PRICE:
            raise RemoteProtocolError("no-price", "a trade of nothing", peer=peer)
    if len({bid_on[one.offer_digest] for one in given}) < len(given):
        raise RemoteProtocolError("allocated-twice", f"of {len(given)} offers", peer=peer)
    total = sum(one.price for one in given)
    if total > budget:
        raise RemoteProtocolError("over-budget", f"{total} wei, of {budget}", peer=peer)
