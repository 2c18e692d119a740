"""Clears one call by the weight market of paper 003 (`broker_node.mechanisms.eeg`).

Buyers are those who bid, with their budgets; sellers those whose layers they had tried; a
seller's capacity is the layers of its model, each sold once in a call; a unit of utility is the
whole of a buyer's loss, which no buyer can be rid of more than once (D_s = 1). How many layers a
unit of it takes of each seller is `broker_node.calls.demand`'s prediction.

What the mechanism divides is divisible, and layers are not: of a fraction of a seller's layers a
buyer gets as many whole ones, from the input side, rounded down, and of these the longest
beginning that it has bid on. It pays the seller's price a layer for what it gets, rounded down to
whole Wei in favour of the buyer, though at least the one that the escrow takes, and never more
than its budget leaves. So every budget,
and every capacity, holds exactly; what rounding leaves unsold the seller keeps, and the money the
buyer. An outcome whose certificate `verify` does not confirm is an error, and gives nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, cast

from broker_node.calls.call import Attempt, Closed, Placed
from broker_node.calls.demand import predicted, slope_of
from broker_node.mechanisms.base import DEFAULT_TOLERANCE, Certificate, Json, Outcome, Status
from broker_node.mechanisms.eeg import ExtendedEisenbergGale
from broker_node.mechanisms.weight_market.market import RANGES
from node.protocol.call import LEAST_PRICE, Allocation
from node.protocol.errors import LocalProtocolError
from node.protocol.types import Address, Digest, Wei

UNIT: Final = 10**18
"""Wei in a unit of the mechanism's money."""
WHOLE: Final = 1e-6
"""What an allocation may lack of a whole layer: more than a clearing errs, less than any matters.

The sum of what is rounded so exceeds no capacity: it is a whole number, and over by under one."""
MOST_LOSS: Final = 1.0
"""D_s: nobody can be rid of more than the whole of its loss."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """One allocation: what the mechanism gave, and what becomes of it."""

    buyer: Address
    seller: Address
    share: float
    """Layers, as the mechanism divides them."""
    layers: int
    """Whole ones that are delivered; 0 if it comes to none, and is not answered then."""
    trial_id: Digest | None
    allocation: Allocation | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClearedCall:
    """A call that is over."""

    name: Digest
    buyers: tuple[Address, ...]
    """In the order of the market's rows: those who could gain by anything that they bid on."""
    sellers: tuple[Address, ...]
    budgets: Mapping[Address, Wei]
    """Of all who bid."""
    market: Mapping[str, Json]
    outcome: Outcome | None
    """None where nobody could gain by anything."""
    certificate: Certificate | None
    given: tuple[Given, ...]

    def answer_to(self, buyer: Address) -> tuple[Allocation, ...]:
        """Return what a buyer is told."""
        return tuple(
            one.allocation
            for one in self.given
            if one.buyer == buyer and one.allocation is not None
        )


def clear_call(closed: Closed) -> ClearedCall:
    """Return what a call comes to: a function of its bids and trials alone.

    Raises `LocalProtocolError` for an outcome that is not exact.
    """
    slopes = {placed.buyer: _slopes(placed) for placed in closed.placed}
    placed_of = {placed.buyer: placed for placed in closed.placed if slopes[placed.buyer]}
    buyers = tuple(placed_of)
    sellers = tuple(sorted({seller for buyer in buyers for seller in slopes[buyer]}))
    budgets = {placed.buyer: placed.bid.budget for placed in closed.placed}
    if not buyers:
        return ClearedCall(
            name=closed.name, buyers=(), sellers=(), budgets=budgets, market={}, outcome=None,
            certificate=None, given=(),
        )  # fmt: skip
    capacity = {a.seller: a.capacity for p in placed_of.values() for a in p.wanted}
    market = _market(buyers, sellers, slopes, budgets, capacity)
    mechanism = ExtendedEisenbergGale()
    outcome = mechanism.clear(market, tolerance=DEFAULT_TOLERANCE, seed=0)
    certificate = mechanism.verify(market, outcome)
    if outcome.status is not Status.TRADE or not certificate.valid:
        worst = max(certificate.violations, key=lambda name: certificate.violations[name])
        raise LocalProtocolError(
            f"call {closed.name.hex()[:16]} has no exact outcome: {outcome.status.value}, "
            f"{worst} {certificate.violations[worst]:g}"
        )
    x_SJ = cast("list[list[float]]", outcome.values["x"])
    prices_J = [Fraction(row[0]) for row in cast("list[list[float]]", outcome.values["prices"])]
    given: list[Given] = []
    for s, buyer in enumerate(buyers):
        shares = {
            seller: (x_SJ[s][j] / slopes[buyer][seller], prices_J[j])
            for j, seller in enumerate(sellers)
            if seller in slopes[buyer] and x_SJ[s][j] / slopes[buyer][seller] > WHOLE
        }
        given += _whole_layers(placed_of[buyer], slopes[buyer], shares)
    return ClearedCall(
        name=closed.name, buyers=buyers, sellers=sellers, budgets=budgets, market=market,
        outcome=outcome, certificate=certificate, given=tuple(given),
    )  # fmt: skip


def _slopes(placed: Placed) -> dict[Address, float]:
    """Return the predicted gain a layer of each seller of whom something is wanted."""
    found = {}
    for seller in sorted({attempt.seller for attempt in placed.wanted}):
        own = [attempt for attempt in placed.attempts if attempt.seller == seller]
        slope = slope_of({one.layers: one.gain for one in sorted(own, key=lambda a: a.age)})
        if slope > 0:
            found[seller] = slope
    return found


def _market(
    buyers: tuple[Address, ...],
    sellers: tuple[Address, ...],
    slopes: Mapping[Address, Mapping[Address, float]],
    budgets: Mapping[Address, Wei],
    capacity: Mapping[Address, int],
) -> dict[str, Json]:
    demand: list[Json] = [
        [[1 / slopes[buyer][seller]] if seller in slopes[buyer] else None for seller in sellers]
        for buyer in buyers
    ]
    budget: list[Json] = [float(Fraction(budgets[buyer], UNIT)) for buyer in buyers]
    limit: list[Json] = [MOST_LOSS] * len(buyers)
    layers: list[Json] = [[float(capacity[seller])] for seller in sellers]
    return {
        "demand": demand, "budget": budget, "max_utility": limit, "capacity": layers,
        RANGES: False,
    }  # fmt: skip


def _whole_layers(
    placed: Placed,
    slopes: Mapping[Address, float],
    shares: Mapping[Address, tuple[float, Fraction]],
) -> list[Given]:
    given: list[Given] = []
    left = placed.bid.budget
    for seller, (share, price_a_layer) in shares.items():
        best = _longest(placed, seller, most=math.floor(share + WHOLE))
        allocation = None
        if best is not None and left >= LEAST_PRICE:
            # over what is left only by what `WHOLE` adds, and by the one wei of what is free
            price = max(LEAST_PRICE, math.floor(price_a_layer * best.layers * UNIT))
            allocation = Allocation(
                offer_digest=best.offer_digest,
                price=Wei(min(left, price)),
                predicted=predicted(slopes[seller], best.layers),
            )
            left = Wei(left - allocation.price)
        given.append(
            Given(
                buyer=placed.buyer,
                seller=seller,
                share=share,
                layers=0 if best is None or allocation is None else best.layers,
                trial_id=None if best is None or allocation is None else best.trial_id,
                allocation=allocation,
            )
        )
    return given


def _longest(placed: Placed, seller: Address, most: int) -> Attempt | None:
    """Return the longest beginning of a seller's layers that was bid on, the newest of several."""
    fitting = [a for a in placed.wanted if a.seller == seller and a.layers <= most]
    return max(fitting, key=lambda a: (a.layers, a.age), default=None)
