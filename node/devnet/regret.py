"""What was lost by what was said: regret against the truth, and revenue against the best ask.

All of it is reckoned leg by leg, after the fact, at the other side's own words in that leg. With
the price rule p(b, a) of the broker (`bargain`; none where b and a do not meet), the value v, the
cash m, the bid b, the ask a, the cost c, and what is left after the fee n(p):

    regret of a buyer     Σ (v − p(min(v, m), a))  −  Σ (v − p paid)
    regret of a seller    Σ (n(p(min(b, m), c)) − c)  −  Σ (n(p paid) − c)
    optimum of a seller   Σ max over asks x >= c of n(p(min(v, m), x))
    revenue lost          optimum  −  Σ n(p paid)

A term without a trade is 0. Positive regret is what the truth would have brought besides; where
it is negative, the agent did better by what it said than it would have by the truth, so that the
mechanism is not truthful: a price at the midpoint never is. Revenue lost is negative where a
buyer bid over its value. What is held fixed is much: what is on offer, all trials, whatever the
others say and have learnt of prices, and later rounds. A leg that had a price and was not paid
fell through for another reason, and is left out of every sum.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from broker_node.mechanisms.price import bargain
from node.devnet.haggling import Leg
from node.protocol.fees import fee_of
from node.protocol.types import Wei


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the bids and asks of one agent came to, in wei."""

    bids: int
    bought: int
    asks: int
    sold: int
    fell_through: int
    regret_buying: int
    regret_selling: int
    revenue: int
    optimum: int


def said_by(agent: str, legs: Iterable[Leg]) -> Said:
    """Return what one agent's words came to over the legs of a market."""
    mine = [leg for leg in legs if agent in (leg.buyer, leg.seller)]
    whole = [leg for leg in mine if not fell_through(leg)]
    buying = [leg for leg in whole if leg.buyer == agent]
    selling = [leg for leg in whole if leg.seller == agent]
    return Said(
        bids=len(buying),
        bought=_paid(buying),
        asks=len(selling),
        sold=_paid(selling),
        fell_through=len(mine) - len(whole),
        regret_buying=sum(map(buyers_regret, buying)),
        regret_selling=sum(map(sellers_regret, selling)),
        revenue=sum(map(revenue, selling)),
        optimum=sum(
            best_revenue(Wei(min(leg.worth, leg.most)), leg.cost, leg.fee_basis_points)
            for leg in selling
        ),
    )


def _paid(legs: Sequence[Leg]) -> int:
    return sum(leg.paid is not None for leg in legs)


def fell_through(leg: Leg) -> bool:
    """Whether a leg had a price, and was not paid all the same."""
    deal = bargain(leg.valuation, leg.ask, fee_basis_points=leg.fee_basis_points)
    return leg.paid is None and deal is not None


def buyers_regret(leg: Leg) -> int:
    """Return what the buyer would have had by bidding its value, less what it had."""
    value = Wei(min(leg.worth, leg.most))
    deal = bargain(value, leg.ask, fee_basis_points=leg.fee_basis_points)
    truth = 0 if deal is None else leg.worth - deal.price
    return truth - (0 if leg.paid is None else leg.worth - leg.paid)


def sellers_regret(leg: Leg) -> int:
    """Return what the seller would have had by asking its cost, less what it had."""
    deal = bargain(leg.valuation, leg.cost, fee_basis_points=leg.fee_basis_points)
    truth = 0 if deal is None else deal.seller_receives - leg.cost
    return truth - (0 if leg.paid is None else revenue(leg) - leg.cost)


def revenue(leg: Leg) -> int:
    """Return what reached the seller."""
    return 0 if leg.paid is None else leg.paid - fee_of(leg.paid, leg.fee_basis_points)


def best_revenue(value: Wei, cost: Wei, fee_basis_points: int) -> int:
    """Return the most that reaches a seller by any ask of at least `cost`, at a bid of `value`.

    The higher the ask the higher the price, up to the bid; an ask for all that is left of it
    leaves neither side better off, and is no deal, so that the best is at most a few wei less.
    """
    left = value - fee_of(value, fee_basis_points)
    asks = {Wei(ask) for ask in (left, left - 1, left - 2, cost) if ask >= cost}
    deals = [bargain(value, ask, fee_basis_points=fee_basis_points) for ask in asks]
    return max((deal.seller_receives for deal in deals if deal is not None), default=0)
