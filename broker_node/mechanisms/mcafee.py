"""Many buyers and sellers of one good: McAfee's double auction (1992).

Bids fall and asks rise; k is the last pair of which the bid covers the ask. If the midpoint
of the pair after it lies between ask k and bid k, it is the price of all k trades. If not,
or if there is no such pair, the k-th pair is given up: the other k − 1 buyers pay bid k, the
sellers receive ask k, and what lies between is left with the broker.

It is truthful, individually rational and never needs money from outside, and so gives up
efficiency, though never more than the least valuable trade. Balance is weak: the surplus is
the broker's, (k − 1)·(bid k − ask k).
"""

from __future__ import annotations

import numpy as np

from broker_node.mechanisms.base import (
    DEFAULT_TOLERANCE,
    Certificate,
    Claim,
    Issue,
    Json,
    Market,
    Outcome,
    RefusedInputError,
    Status,
)
from broker_node.mechanisms.reading import amounts, issues_of, number, require_keys
from broker_node.mechanisms.stated import misstated_status, stated, stated_indices, stated_number
from broker_node.mechanisms.transfers import InWei, Transfers
from node.protocol.types import Wei


def transfers_in_wei(market: Market, outcome: Outcome, *, unit: Wei) -> Transfers:
    """Return what each buyer pays and each seller receives; `unit` is what 1.0 is worth.

    Both prices are rounded down: buyers pay at most their bids, sellers get at least their
    asks where these are whole in Wei, and the broker is never short. Raises `RefusedInputError`
    for an outcome that breaks a bid, an ask or the balance, and for payments over 256 bits.
    """
    bids, asks = _read(market)
    buyers = stated_indices(outcome, "buyers", len(bids))
    sellers = stated_indices(outcome, "sellers", len(asks))
    if len(buyers) != len(sellers):
        raise RefusedInputError("buyers", f"are {len(buyers)} for {len(sellers)} sellers")
    paid = received = Wei(0)
    if buyers:
        high, low = (stated_number(outcome, key) for key in ("buyer_price", "seller_price"))
        if any(high > bids[buyer] for buyer in buyers):
            raise RefusedInputError("buyer_price", f"of {high:g} is over a buyer's bid")
        if low > high or low < 0 or any(low < asks[seller] for seller in sellers):
            raise RefusedInputError(
                "seller_price", f"of {low:g} is over what buyers pay or under a seller's ask"
            )
        paid, received = (InWei(unit).down(price) for price in (high, low))
    return Transfers(
        paid=tuple(paid if buyer in set(buyers) else Wei(0) for buyer in range(len(bids))),
        received=tuple(
            received if seller in set(sellers) else Wei(0) for seller in range(len(asks))
        ),
        broker=Wei(len(buyers) * (paid - received)),
    )


def _read(market: Market) -> tuple[np.ndarray, np.ndarray]:
    require_keys(market, ("bids", "asks"))
    return amounts(market["bids"], "bids"), amounts(market["asks"], "asks")


class McAfee:
    """Many buyers and sellers of one good: double auction with trade reduction."""

    name = "mcafee"
    claims = frozenset(
        {Claim.INDIVIDUAL_RATIONALITY, Claim.INCENTIVE_COMPATIBILITY, Claim.BUDGET_BALANCE}
    )

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return trades (how many), buyer_price, seller_price, and who: buyers and sellers.

        Both prices are null where nothing trades; `surplus` is what the broker is left with.
        Of equal bids or asks the first given come first.
        """
        bids, asks = _read(market)
        buyers = np.argsort(-bids, kind="stable")
        sellers = np.argsort(asks, kind="stable")
        pairs = min(len(bids), len(asks))
        falling, rising = bids[buyers], asks[sellers]
        count = int((falling[:pairs] >= rising[:pairs]).sum())
        buyer_price = seller_price = None
        if count:
            buyer_price, seller_price = float(falling[count - 1]), float(rising[count - 1])
            middle = (
                float(falling[count] + rising[count]) / 2 if count < pairs else float("nan")
            )  # no pair, no midpoint: it lies nowhere
            if seller_price <= middle <= buyer_price:
                buyer_price = seller_price = middle
            else:
                count -= 1
        if not count:
            buyer_price = seller_price = None
        surplus = 0.0
        if buyer_price is not None and seller_price is not None:
            surplus = count * (buyer_price - seller_price)
        values: dict[str, Json] = {
            "trades": count,
            "buyer_price": buyer_price,
            "seller_price": seller_price,
            "buyers": [int(buyer) for buyer in sorted(buyers[:count])],
            "sellers": [int(seller) for seller in sorted(sellers[:count])],
            "surplus": surplus,
        }
        return Outcome(status=Status.TRADE if count else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge by counting who would trade at a price, without pairing anybody.

        k is the largest number for which as many bids as that cover as many asks. With
        everybody within the prices and the balance right, `trades` says which case it is.
        """
        bids, asks = (values.tolist() for values in _read(market))
        trades = number(stated(outcome, "trades"), "trades")
        buyers = stated_indices(outcome, "buyers", len(bids))
        sellers = stated_indices(outcome, "sellers", len(asks))
        efficient = _efficient_trades(bids, asks)
        expected = _case(bids, asks, efficient)
        violations = {
            "status": misstated_status(outcome, trades=bool(trades)),
            "trades": abs(trades - expected[0]),
            "pairs": float(not len(buyers) == len(sellers) == trades),
        }
        if trades == 0 or expected[0] == 0:
            given = [stated(outcome, key) for key in ("buyer_price", "seller_price")]
            violations["prices"] = float(given != [None, None])
            return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)
        paid, received = (stated_number(outcome, key) for key in ("buyer_price", "seller_price"))
        scale = max(1e-300, abs(paid), abs(received), *(bids[buyer] for buyer in buyers))
        surplus = trades * (paid - received)
        violations |= {
            "prices": max(abs(paid - expected[1]), abs(received - expected[2])) / scale,
            "buyers": max([0.0, *(paid - bids[buyer] for buyer in buyers)]) / scale,
            "sellers": max([0.0, *(asks[seller] - received for seller in sellers)]) / scale,
            "ranks": float(_outranked(bids, buyers) or _outranked([-a for a in asks], sellers)),
            "deficit": max(0.0, received - paid) / scale,
            "surplus": abs(stated_number(outcome, "surplus") - surplus) / (scale * trades),
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)


def _efficient_trades(bids: list[float], asks: list[float]) -> int:
    """Return k as the most units that change hands at one price, over all prices that matter."""
    ordered_bids, ordered_asks = np.sort(bids), np.sort(asks)
    levels = np.unique(np.concatenate([ordered_bids, ordered_asks]))
    demand = len(bids) - np.searchsorted(ordered_bids, levels, side="left")
    supply = np.searchsorted(ordered_asks, levels, side="right")
    return int(np.minimum(demand, supply).max())


def _case(bids: list[float], asks: list[float], efficient: int) -> tuple[int, float, float]:
    """Return how many trade, what buyers pay and what sellers receive."""
    if efficient == 0:
        return 0, 0.0, 0.0
    falling, rising = np.sort(bids)[::-1], np.sort(asks)
    bid, ask = float(falling[efficient - 1]), float(rising[efficient - 1])
    if efficient < min(len(bids), len(asks)):
        price = float(falling[efficient] + rising[efficient]) / 2
        if ask <= price <= bid:
            return efficient, price, price
    return efficient - 1, bid, ask


def _outranked(offers: list[float], chosen: list[int]) -> bool:
    """Return whether somebody left out offered more than one who was taken."""
    taken = set(chosen)
    left = [offer for index, offer in enumerate(offers) if index not in taken]
    return bool(left and chosen) and max(left) > min(offers[index] for index in chosen)
