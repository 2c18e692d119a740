"""Agents with a dishonest half, and the market that they are let into."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from node.agent.agent import Agent
from node.agent.consent import Consent
from node.agent.seller import Seller
from node.chain.port import EscrowState
from node.settlement.trade import Trade
from node.settlement.treasury import Treasury
from tests.market.market import Market, open_market


class Cheat(Agent):
    """An agent with a dishonest half."""

    seller_class: type[Seller] = Seller
    treasury_class: type[Treasury] = Treasury

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        station = self.station
        consent = Consent(arguments["escrow"])
        self.seller = self.seller_class(station, self.desk, arguments["settings"], consent)
        self.desk._treasury = self.treasury_class(
            arguments["escrow"], station.journal, station.observer
        )


def cheat(seller: type[Seller] = Seller, treasury: type[Treasury] = Treasury) -> type[Cheat]:
    return type("Cheat", (Cheat,), {"seller_class": seller, "treasury_class": treasury})


@asynccontextmanager
async def market_with(folder: Path, shell: type[Agent], **windows: Any) -> AsyncIterator[Market]:
    """A market with a buyer, an honest seller and one that is not."""
    async with open_market(folder, **windows) as market:
        for name, kind in (("buyer", Agent), ("honest", Agent), ("cheat", shell)):
            await market.join(name, kind)
        await market["honest"].offer()
        yield market


async def honest_trade(market: Market) -> None:
    """The same buyer trades with somebody else, to the end."""
    buyer = market["buyer"]
    trade = await buyer.buy(market["honest"])
    await market.see_paid(trade, buyer, market["honest"])


def untouched(market: Market, trade: Trade) -> None:
    """The chain never heard of a trade, and the buyer gave it up."""
    name = trade.machine.record.trade_id
    assert market.state(name) is EscrowState.NONE
    assert not market["buyer"].journal.transactions(name)
    assert market["buyer"].states(name)[-1] == "abandoned"
