"""The part of a report that says what each strategy came to. Amounts are wei, as strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class StrategyRow(TypedDict):
    """One agent in one market: what its bids and asks came to (`node.devnet.regret`)."""

    arm: str
    seed: int
    agent: str
    strategy: str
    bids: int
    bought: int
    asks: int
    sold: int
    fell_through: int
    """Trades of either side that had a price and were not paid; they are in no other figure."""
    regret_buying: str
    """What true bids would have brought it besides; under 0, it did better than by the truth."""
    regret_selling: str
    """What asking its cost would have brought it besides."""
    revenue: str
    optimum: str
    """What the best asks in hindsight would have brought."""


class OtherGoods(TypedDict):
    """What an agent sold in place of what it had trained."""

    arm: str
    seed: int
    agent: str
    kind: str
    offers: int
    trials: int
    gaining: int
    """Trials that showed a gain."""
    sure: int
    """Those of them whose bound was over 0 too."""
    bids: int
    sold: int
    to_its_maker: int
    """Of a replica: sales to the agent that it was bought from."""
    revenue: str


class TriedGoods(TypedDict):
    """What trials of one agent's goods showed, beside what each buyer's model gains by itself."""

    arm: str
    seed: int
    agent: str
    kind: str
    """``own``: what it had trained; else as in `OtherGoods`."""
    trials: int
    """Those of which the latter was measured too: each pair of models is measured once."""
    gain: float
    """Their mean, a fraction of the buyer's loss."""
    control: float
    """The mean of what the buyers' own outputs gain by the best factor on them."""
    beyond: int
    """Trials that gained more than their control."""


class Washing(TypedDict):
    """What the wash-traders of one market did to price history."""

    arm: str
    seed: int
    trades: int
    paid: str
    fees: str
    """What it cost their owner."""
    asks: int
    """Asks of others that were named with such a receipt in view."""
    asked: str
    """Their sum."""
    without: str
    """What the same sellers would have asked without these receipts."""
    lost: int
    """Trades of others that these asks were too high for, and the lower ones would not be."""


class Balance(TypedDict):
    """What all buyers paid, by their journals, what all sellers received, by theirs, and fees."""

    arm: str
    seed: int
    paid: str
    received: str
    fees: str
    """By the chain."""
    surplus: str
    """paid − received − fees: 0 in a market that balances."""


class Strategies(TypedDict):
    """What each strategy came to."""

    agents: Sequence[StrategyRow]
    goods: Sequence[OtherGoods]
    tried: Sequence[TriedGoods]
    washing: Sequence[Washing]
    balance: Sequence[Balance]


def together(played: Sequence[Strategies]) -> Strategies:
    """Return the rows of several markets, one after the other."""
    return Strategies(
        agents=[row for one in played for row in one["agents"]],
        goods=[row for one in played for row in one["goods"]],
        tried=[row for one in played for row in one["tried"]],
        washing=[row for one in played for row in one["washing"]],
        balance=[row for one in played for row in one["balance"]],
    )
