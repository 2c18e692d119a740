"""Copies of one good at one price: the (k + 1)-th price auction with a reserve (Vickrey 1961).

The k highest bids of at least the reserve win a copy each; all pay the highest of the
reserve and the (k + 1)-th bid. Of equal bids the first given win. Where nobody wins, the
price is the reserve: what a copy would have cost.

For buyers that want one copy it is truthful, individually rational, balanced (the seller
receives what is paid) and free of envy. Among bids over the reserve it is efficient too; the
reserve gives that up, for revenue.
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
from broker_node.mechanisms.reading import amount, amounts, issues_of, require_keys, shown
from broker_node.mechanisms.stated import misstated_status, stated_indices, stated_number
from broker_node.mechanisms.transfers import InWei, Transfers
from node.protocol.types import Wei


def transfers_in_wei(market: Market, outcome: Outcome, *, unit: Wei) -> Transfers:
    """Return what each bidder pays, and the one seller receives; `unit` is what 1.0 is worth.

    The price is rounded down, in favour of the buyers: in whole Wei too all pay one price, at
    most their bid. Raises `RefusedInputError` for an outcome in which a winner pays more than
    it bids, and for payments over 256 bits.
    """
    bids, copies, _ = _read(market)
    winners = stated_indices(outcome, "winners", len(bids))
    told = stated_number(outcome, "price")
    if len(winners) > copies:
        raise RefusedInputError("winners", f"are {len(winners)} of {copies} copies")
    if told < 0 or any(told > bids[winner] for winner in winners):
        raise RefusedInputError("price", f"of {told:g} is below 0 or over a winner's bid")
    price = InWei(unit).down(told) if winners else Wei(0)
    paid = tuple(price if bidder in set(winners) else Wei(0) for bidder in range(len(bids)))
    return Transfers(paid=paid, received=(Wei(price * len(winners)),))


def _read(market: Market) -> tuple[np.ndarray, int, float]:
    require_keys(market, ("bids", "copies", "reserve"))
    copies = market["copies"]
    if isinstance(copies, bool) or not isinstance(copies, int) or copies < 1:
        reason = f"must be a whole number of at least 1, got {shown(copies)}"
        raise RefusedInputError("copies", reason)
    return amounts(market["bids"], "bids"), copies, amount(market["reserve"], "reserve")


class KPlusOne:
    """Copies of one good at one price: the highest bid that wins none, or the reserve."""

    name = "kplus1"
    claims = frozenset(
        {
            Claim.INDIVIDUAL_RATIONALITY,
            Claim.INCENTIVE_COMPATIBILITY,
            Claim.BUDGET_BALANCE,
            Claim.ENVY_FREE,
        }
    )

    def validate(self, market: Market) -> list[Issue]:
        return issues_of(_read, market)

    def clear(self, market: Market, *, tolerance: float, seed: int) -> Outcome:
        """Return winners (indices, rising) and the price that each of them pays."""
        bids, copies, reserve = _read(market)
        order = np.argsort(-bids, kind="stable")
        winners = [int(bidder) for bidder in order[:copies] if bids[bidder] >= reserve]
        price = reserve
        if copies < len(order):
            price = max(reserve, float(bids[order[copies]]))
        values: dict[str, Json] = {"winners": [*sorted(winners)], "price": price}
        return Outcome(status=Status.TRADE if winners else Status.NO_TRADE, values=values)

    def verify(self, market: Market, outcome: Outcome) -> Certificate:
        """Judge by what defines the price: winners are willing, losers are not, and it is least.

        A lower price would be under the reserve, or have a loser who wants a copy as well.
        """
        bids, copies, reserve = _read(market)
        won = np.zeros(len(bids), dtype=np.bool_)
        won[stated_indices(outcome, "winners", len(bids))] = True
        price = stated_number(outcome, "price")
        scale = max(1e-300, reserve, float(bids.max()))
        willing = float(bids[won].min()) if won.any() else price
        losing = float(bids[~won].max()) if not won.all() else 0.0
        sold_out = int(won.sum()) == min(copies, len(bids))
        violations = {
            "status": misstated_status(outcome, trades=bool(won.any())),
            "copies": float(max(0, int(won.sum()) - copies)),
            "individual_rationality": max(0.0, price - willing) / scale,
            # with copies to spare, whoever reaches the reserve has one
            "left_over": float(not sold_out and losing >= reserve),
            "envy": max(0.0, losing - price) / scale,
            "price": abs(price - max(reserve, losing if sold_out else 0.0)) / scale,
        }
        return Certificate(violations=violations, tolerance=DEFAULT_TOLERANCE)
